//! A consume loop that takes nothing before something has happened.

use std::sync::Arc;

use futures_util::stream;
use postrider_core::{Consumer, Error, ErrorKind, Result, Transport};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Process, Running,
    runner::{Again, Runner, Work, run},
    running::State,
};

impl<P: Process> Runner<P> {
    /// As [`start`](Self::start), but it consumes only after `begin`, or never where that says so;
    /// until then its messages stay in the queue, for others or for later.
    pub(crate) fn start_after(
        self,
        begin: impl Future<Output = bool> + Send + 'static,
        transport: &Arc<dyn Transport>,
        queue: &str,
    ) -> Result<Running> {
        self.settings.check()?;
        let (transport, name) = (Arc::clone(transport), queue.to_owned());
        let again = Again { transport, queue: name, is_careful: false };
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        let (state, watched) = watch::channel(State::Held);
        let (settings, counters) = (self.settings, Arc::clone(&self.counters));
        let work = Arc::new(Work { runner: self, kill: kill.clone() });
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let begun = async {
                if begin.await {
                    return again.consumer(&settings).await;
                }
                let why = "nobody is left who could let it begin";
                Err(Error::new(ErrorKind::Closed, "consume", why))
            };
            let consumer = match stopped.run_until_cancelled(begun).await {
                Some(Ok(consumer)) => {
                    state.send_replace(State::Running);
                    consumer
                }
                Some(Err(error)) => Consumer::new(stream::iter([Err(error)])),
                None => Consumer::new(stream::empty()),
            };
            run(work, consumer, Some(again), state, stopped).await;
        });
        let running = Running::new(queue.into(), counters, watched, stop, kill, task);
        Ok(running.with_places(settings.places()))
    }
}
