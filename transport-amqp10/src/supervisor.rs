//! Watches the connections, and brings everything back after they were lost.

use std::{sync::Arc, time::Duration};

use futures_util::future;
use postrider_core::{Env, Error, ErrorKind, Result, TransportEvent};
use tokio::time::sleep;

use crate::{admin, connection::Connection, dial::Dial, link::Link};

/// The first pause between attempts to reconnect.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Runs until the connection is closed by its user.
pub(crate) async fn supervise(link: Arc<Link>, dial: Dial, mut connection: Arc<Connection>) {
    loop {
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
        let restored = tokio::select! {
            restored = reconnect(&link, &dial, &connection) => restored,
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
    let mut told = false;
    loop {
        let now = *blocked.borrow_and_update();
        if now != told {
            told = now;
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

/// Tries until connection, topology and consumers are back.
async fn reconnect(link: &Arc<Link>, dial: &Dial, lost: &Connection) -> Arc<Connection> {
    let longest = link.options().reconnect_pause.max(FIRST_PAUSE);
    let mut pause = FIRST_PAUSE;
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

async fn restore(link: &Arc<Link>, dial: &Dial, lost: &Connection) -> Result<Arc<Connection>> {
    let connection = Connection::open(dial, lost.epoch() + 1).await?;
    let restoring = async {
        admin::restore(link, &connection).await?;
        let subscribers = link.subscribers().alive();
        future::join_all(subscribers.iter().map(|subscriber| subscriber.resume(&connection)))
            .await
            .into_iter()
            .collect::<Result<Vec<()>>>()
            .map(drop)
    };
    let outcome = tokio::select! {
        outcome = restoring => outcome,
        cause = watch(link, &connection) => {
            Err(Error::new(ErrorKind::Unavailable, "reconnect", cause))
        }
    };
    match outcome {
        Ok(()) => Ok(connection),
        Err(error) => {
            connection.end();
            lose(link);
            connection.close().await;
            Err(error)
        }
    }
}
