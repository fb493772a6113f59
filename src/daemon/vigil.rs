//! The vigil over critical threads and tasks: none of them may end unnoticed.
//!
//! Everything that the daemon cannot do without has a [`Watch`]. However it ends (told to, early,
//! failed, panicked, dropped), one message says so; whoever holds the [`Vigil`] decides what that
//! means.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::mpsc;

use super::Error;

/// More than a configuration can ask for (256 sinks with 64 workers each); a bound for the channel.
const MOST_WATCHED: usize = 256 * 64 + 64;

/// Hears of every end.
#[derive(Debug)]
pub(super) struct Vigil {
    sender: mpsc::Sender<Ended>,
    ended: mpsc::Receiver<Ended>,
    running: Vec<String>,
    /// What was heard of the end of what has ended, until somebody asks.
    failures: Vec<(String, Error)>,
}

/// One end.
#[derive(Debug)]
pub(super) struct Ended {
    /// Whose.
    pub(super) name: String,
    /// How.
    pub(super) how: Result<(), Error>,
}

/// Held by what is watched; its end, or being dropped without one, is heard.
#[derive(Debug)]
pub(super) struct Watch {
    sender: mpsc::Sender<Ended>,
    name: String,
    ended: bool,
}

impl Watch {
    /// Says how it ended.
    pub(super) fn end(mut self, how: Result<(), Error>) {
        self.tell(how);
    }

    fn tell(&mut self, how: Result<(), Error>) {
        self.ended = true;
        // Fails only when nobody keeps vigil any more: the process is ending.
        let _ = self.sender.try_send(Ended { name: self.name.clone(), how });
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.ended {
            self.tell(Err(Error::Failed(format!(
                "`{}` ended without a word; please report this",
                self.name
            ))));
        }
    }
}

impl Vigil {
    pub(super) fn new() -> Self {
        let (sender, ended) = mpsc::channel(MOST_WATCHED);
        Vigil { sender, ended, running: Vec::new(), failures: Vec::new() }
    }

    /// A watch for something that must not end before it is told to.
    pub(super) fn watch(&mut self, name: &str) -> Watch {
        self.running.push(name.to_owned());
        Watch { sender: self.sender.clone(), name: name.to_owned(), ended: false }
    }

    /// Starts a thread with a watch.
    pub(super) fn start(
        &mut self,
        name: &str,
        work: impl FnOnce() -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let watch = self.watch(name);
        let body = move || {
            // The state a panic may have left broken belongs to that thread alone or latches itself;
            // the daemon drains and ends after it in any case.
            let how = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
                Err(Error::Failed(format!("`{}` panicked: {}", watch.name, message(panic.as_ref()))))
            });
            watch.end(how);
        };
        let started = std::thread::Builder::new().name(name.to_owned()).spawn(body);
        started.map(drop).map_err(|error| Error::Failed(format!("cannot start thread `{name}`: {error}")))
    }

    /// Whether anything whose name begins with `prefix` has not ended.
    pub(super) fn runs(&self, prefix: &str) -> bool {
        self.running.iter().any(|name| name.starts_with(prefix))
    }

    /// The next end; never returns while nothing ends. Cancel-safe.
    pub(super) async fn next(&mut self) -> Ended {
        match self.ended.recv().await {
            Some(ended) => {
                self.running.retain(|name| *name != ended.name);
                ended
            }
            // `self.sender` keeps the channel open.
            None => std::future::pending().await,
        }
    }

    /// Waits until nothing whose name begins with `prefix` runs: the first of their failures, if any.
    /// Cancel-safe.
    pub(super) async fn ended(&mut self, prefix: &str) -> Result<(), Error> {
        while self.runs(prefix) {
            let Ended { name, how } = self.next().await;
            self.failures.extend(how.err().map(|error| (name, error)));
        }
        match self.failures.iter().position(|(name, _)| name.starts_with(prefix)) {
            Some(at) => Err(self.failures.remove(at).1),
            None => Ok(()),
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_kind_of_end_is_heard() {
        let mut vigil = Vigil::new();
        vigil.start("fine", || Ok(())).unwrap();
        vigil.start("failing", || Err(Error::StorageFailed("EIO".to_owned()))).unwrap();
        vigil.start("panicking", || panic!("planted")).unwrap();
        drop(vigil.watch("vanishing"));
        assert!(vigil.ended("fine").await.is_ok());
        assert!(matches!(vigil.ended("failing").await, Err(Error::StorageFailed(why)) if why == "EIO"));
        assert!(matches!(vigil.ended("panicking").await, Err(Error::Failed(why)) if why.contains("planted")));
        assert!(matches!(vigil.ended("vanishing").await, Err(Error::Failed(_))));
        assert!(!vigil.runs(""));
    }

    #[tokio::test]
    async fn an_end_heard_while_waiting_for_another_is_not_forgotten() {
        let mut vigil = Vigil::new();
        let (first, second) = (vigil.watch("first"), vigil.watch("second"));
        first.end(Err(Error::Failed("early".to_owned())));
        second.end(Ok(()));
        assert!(vigil.ended("second").await.is_ok());
        assert!(vigil.ended("first").await.is_err());
    }
}
