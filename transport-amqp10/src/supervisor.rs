//! Watches the connections, and brings everything back after they were lost.

use std::{sync::Arc, time::Duration};

use futures_util::future;
use postrider_core::{Env, Error, ErrorKind, Result, TransportEvent};
use tokio::time::sleep;

use crate::{connection::Connection, dial::Dial, link::Link, restoring};

/// The first pause between attempts to reconnect.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// A connection that lived for less is lost young.
const YOUNG: Duration = Duration::from_secs(5);

/// How many connections in a row may be lost young before there is a pause.
const PATIENCE: u32 = 5;

/// How often it is tried to bring back what goes by itself while the broker still clears up after
/// the lost connection.
const ATTEMPTS: u32 = 20;

/// Runs until the connection is closed by its user.
pub(crate) async fn supervise(link: Arc<Link>, dial: Dial, mut connection: Arc<Connection>) {
    let mut young = 0;
    loop {
        let born = link.env().now();
        let cause = tokio::select! {
            cause = watch(&link, &connection) => cause,
            () = link.shutdown().cancelled() => {
                connection.close().await;
                return;
            }
        };
        connection.end();
        lose(&link);
        // In its own time: a connection that is half dead takes a while.
        let dead = connection.clone();
        tokio::spawn(async move { dead.close().await });
        if !link.go_down() {
            // It is being closed, and there is nothing left to drain.
            return;
        }
        link.events().send(TransportEvent::Lost { cause });
        young = if link.env().now() - born < YOUNG { young + 1 } else { 0 };
        let restored = tokio::select! {
            restored = reconnect(&link, &dial, &connection, young) => restored,
            () = link.shutdown().cancelled() => return,
        };
        connection = restored;
        if !link.come_up(&connection) {
            connection.close().await;
            return;
        }
        link.events().send(TransportEvent::Restored { epoch: connection.epoch() });
    }
}

/// Waits until the connection is lost, and says why.
async fn watch(link: &Link, connection: &Connection) -> String {
    let mut blocked = connection.blocked();
    loop {
        let now = *blocked.borrow_and_update();
        // What is known may be of a connection before this one.
        if now != link.is_blocked() {
            match now {
                true => link.block("the broker takes no messages: an alarm"),
                false => link.unblock(),
            }
        }
        tokio::select! {
            biased;
            () = connection.over() => return connection.cause(),
            changed = blocked.changed() => if changed.is_err() {
                return connection.cause();
            },
        }
    }
}

/// Nothing of the old epoch is settled any more; consumers wait for the next.
fn lose(link: &Link) {
    for stay in link.stays().alive() {
        stay.lose();
    }
    for subscriber in link.subscribers().alive() {
        subscriber.suspend();
    }
}

/// Tries until connection, topology and consumers are back. Connections that are lost as soon as
/// they are made, `young` in a row, are made after a pause: something that comes with them ends them.
async fn reconnect(
    link: &Arc<Link>,
    dial: &Dial,
    lost: &Connection,
    young: u32,
) -> Arc<Connection> {
    let longest = link.options().reconnect_pause.max(FIRST_PAUSE);
    let mut pause = FIRST_PAUSE;
    if let Some(more) = u32::checked_sub(young, PATIENCE) {
        pause = FIRST_PAUSE.saturating_mul(1 << more.min(16)).min(longest);
        sleep(jittered(link.env(), pause)).await;
    }
    loop {
        match restore(link, dial, lost).await {
            Ok(restored) => return restored,
            Err(error) => tracing::warn!(%error, ?pause, "reconnecting failed; trying again"),
        }
        sleep(jittered(link.env(), pause)).await;
        pause = (pause * 2).min(longest);
    }
}

/// Between half the pause and all of it, so that many clients do not come at once.
fn jittered(env: &Env, pause: Duration) -> Duration {
    pause.mul_f64(0.5 + env.random_unit() / 2.0)
}

/// A connection that is being restored, and is closed when that is given up.
struct Attempt(Option<Arc<Connection>>);

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            tokio::spawn(async move { connection.close().await });
        }
    }
}

async fn restore(link: &Arc<Link>, dial: &Dial, lost: &Connection) -> Result<Arc<Connection>> {
    let connection = Connection::open(dial, lost.epoch() + 1).await?;
    let mut attempt = Attempt(Some(connection.clone()));
    let restoring = async {
        for attempt in 1..=ATTEMPTS {
            let last = attempt == ATTEMPTS;
            let bound = restoring::restore(link, &connection, last).await?;
            let subscribers = link.subscribers().alive();
            future::join_all(
                subscribers.iter().map(|subscriber| subscriber.resume(&connection, last)),
            )
            .await
            .into_iter()
            .collect::<Result<Vec<()>>>()?;
            if bound && restoring::is_whole(link, &connection).await? {
                break;
            }
            sleep(FIRST_PAUSE).await;
        }
        Ok(())
    };
    let outcome = tokio::select! {
        outcome = restoring => outcome,
        cause = watch(link, &connection) => {
            Err(Error::new(ErrorKind::Unavailable, "reconnect", cause))
        }
    };
    match outcome {
        Ok(()) => {
            attempt.0 = None;
            Ok(connection)
        }
        Err(error) => {
            connection.end();
            lose(link);
            connection.close().await;
            Err(error)
        }
    }
}
