//! The queue of a data directory that no daemon has open, for commands that change it.
//!
//! Opened as the daemon opens it: locked first, recovered, and with the ledger's thread running, because
//! a change is answered once that thread has made it durable. Nothing listens and no sink is opened. A
//! repair of the log works without threads.
//! A storage failure ends the command with the daemon's code for it; what was durable before stays.

use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Runtime};

use super::lock::Lock;
use super::{Error, entropy, open_queue};
use crate::config::Config;
use crate::disk::{Disk, RealDisk};
use crate::log::repair::Repair;
use crate::queue::Queue;
use crate::queue::embedded::{self, Committer, EmbeddedQueue, Opened};

/// An opened queue that nobody else has.
#[derive(Debug)]
pub struct StoppedQueue {
    queue: Arc<EmbeddedQueue>,
    committer: Committer,
    threads: Vec<JoinHandle<Result<(), Error>>>,
    runtime: Runtime,
    _lock: Lock,
}

impl StoppedQueue {
    /// Locks and opens the queue in `config.data_dir`; there must be one.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let dir = &config.data_dir;
        if !dir.join("ledger").is_dir() {
            let reason = "there is no queue in it; `--data-dir` says where to look".to_owned();
            return Err(Error::DataDir { dir: dir.clone(), reason });
        }
        let lock = Lock::take(dir)?;
        let failed = |error: std::io::Error| Error::Failed(format!("cannot open the queue: {error}"));
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let Opened { queue, committer, ledger, stock, .. } =
            open_queue(config, Arc::new(RealDisk::default()))?;
        let start = |name: &str, work: Box<dyn FnOnce() -> Result<(), Error> + Send>| {
            std::thread::Builder::new().name(name.to_owned()).spawn(work).map_err(failed)
        };
        let threads = vec![
            start("ledger", Box::new(move || Ok(ledger.run()?)))?,
            start(
                "stock",
                Box::new(move || {
                    stock.run();
                    Ok(())
                }),
            )?,
        ];
        Ok(Self { queue, committer, threads, runtime, _lock: lock })
    }

    /// The queue, to ask.
    pub fn queue(&self) -> &dyn Queue {
        &*self.queue
    }

    /// Waits for something that the queue answers later.
    pub fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Closes it with the marks of a clean stop.
    pub fn close(self) -> Result<(), Error> {
        self.queue.begin_drain();
        self.queue.close_appends();
        let committed = self.runtime.block_on(self.committer.run());
        self.queue.stop_background();
        let mut ended = committed.map_err(Error::from);
        for thread in self.threads {
            let how = thread.join().unwrap_or_else(|_| {
                Err(Error::Failed("a thread of the queue panicked; please report this".to_owned()))
            });
            ended = ended.and(how);
        }
        ended
    }
}

/// Repairs the event log in `config.data_dir`, whose lock the caller holds; returns what was done. `threads`
/// and `progress` are those of [`inspect`](crate::log::inspect::inspect).
pub fn repair_log(
    _lock: &Lock,
    config: &Config,
    threads: usize,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Vec<Repair>, Error> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::default());
    let opened = open_queue(config, Arc::clone(&disk))?;
    Ok(embedded::repair_log(&*disk, config, opened, entropy(), threads, progress)?)
}
