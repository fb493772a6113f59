//! What a process costs, as the kernel and a tracer tell it: memory, processor time, system calls.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Processor time a process has used.
#[derive(Clone, Copy)]
pub struct ProcessorTime {
    /// Seconds in its own code.
    pub user: f64,
    /// Seconds in the kernel.
    pub kernel: f64,
}

impl ProcessorTime {
    /// Of this process, so far. The kernel counts in hundredths of a second.
    pub fn of(process: u32) -> Self {
        let text = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("running");
        let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let seconds = |at: usize| fields[at].parse::<f64>().expect("a number of ticks") / 100.0;
        Self { user: seconds(11), kernel: seconds(12) }
    }
}

/// Bytes of memory a process holds.
pub fn resident_bytes(process: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/statm")).expect("running");
    let pages: f64 = text.split(' ').nth(1).and_then(|p| p.parse().ok()).expect("a number of pages");
    pages * 4096.0
}

/// Counts the system calls of a running process. Calls take longer meanwhile; how many an event
/// needs hardly changes.
pub struct SystemCalls {
    tracer: Child,
    counts: std::path::PathBuf,
}

impl SystemCalls {
    /// Begins to count; `None` without strace.
    pub fn of(process: u32, folder: &Path) -> Option<Self> {
        let counts = folder.join("system-calls");
        let tracer = Command::new("strace")
            .args(["-f", "-c", "-U", "calls,name", "-o"])
            .arg(&counts)
            .args(["-p", &process.to_string()])
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let attached = || {
            let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
        };
        while !attached() {
            std::thread::yield_now();
        }
        Some(Self { tracer, counts })
    }

    /// Calls since the beginning, by name.
    pub fn counted(mut self) -> BTreeMap<String, f64> {
        let asked = Command::new("kill").args(["-INT", &self.tracer.id().to_string()]).status();
        asked.expect("kill is there");
        self.tracer.wait().expect("it is ours");
        let text = std::fs::read_to_string(&self.counts).expect("strace wrote it");
        let rows = text.lines().filter_map(|line| {
            let (calls, name) = line.trim().split_once(' ')?;
            Some((name.trim().to_owned(), calls.parse().ok()?))
        });
        rows.filter(|(name, _)| name != "total").collect()
    }
}
