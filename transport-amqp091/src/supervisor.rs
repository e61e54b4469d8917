//! Watches the connections, and brings everything back after they were lost.

use std::{sync::Arc, time::Duration};

use futures_util::future;
use postrider_core::{Env, Error, ErrorKind, Result, TransportEvent};
use tokio::time::sleep;

use crate::{
    admin,
    dial::Dial,
    link::Link,
    session::{Listener, News, Session},
};

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
pub(crate) async fn supervise(
    link: Arc<Link>,
    dial: Dial,
    mut session: Arc<Session>,
    mut listener: Listener,
) {
    let mut young = 0;
    loop {
        let born = link.env().now();
        let cause = tokio::select! {
            cause = watch(&link, &session, &mut listener) => cause,
            () = link.shutdown().cancelled() => {
                session.close().await;
                return;
            }
        };
        session.end();
        lose(&link);
        // In its own time: a connection that is half dead takes a while.
        let dead = session.clone();
        tokio::spawn(async move { dead.close().await });
        if !link.go_down() {
            // It is being closed, and there is nothing left to drain.
            return;
        }
        link.events().send(TransportEvent::Lost { cause });
        young = if link.env().now() - born < YOUNG { young + 1 } else { 0 };
        let restored = tokio::select! {
            restored = reconnect(&link, &dial, &session, young) => restored,
            () = link.shutdown().cancelled() => return,
        };
        (session, listener) = restored;
        if !link.come_up(&session) {
            session.close().await;
            return;
        }
        link.events().send(TransportEvent::Restored { epoch: session.epoch() });
    }
}

/// Waits until the session is lost, and says why.
async fn watch(link: &Link, session: &Session, listener: &mut Listener) -> String {
    loop {
        match session.news(listener).await {
            News::Lost(cause) => return cause,
            News::Blocked(reason) => link.block(&reason),
            News::Unblocked => link.unblock(),
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
    lost: &Session,
    young: u32,
) -> (Arc<Session>, Listener) {
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

async fn restore(
    link: &Arc<Link>,
    dial: &Dial,
    lost: &Session,
) -> Result<(Arc<Session>, Listener)> {
    let (session, mut listener) = dial.session(lost.epoch() + 1, lost.version()).await?;
    let restoring = async {
        for attempt in 1..=ATTEMPTS {
            let last = attempt == ATTEMPTS;
            let bound = admin::restore(link, &session, last).await?;
            let subscribers = link.subscribers().alive();
            future::join_all(
                subscribers.iter().map(|subscriber| subscriber.resume(&session, last)),
            )
            .await
            .into_iter()
            .collect::<Result<Vec<()>>>()?;
            if bound && admin::is_whole(link, &session).await? {
                break;
            }
            sleep(FIRST_PAUSE).await;
        }
        Ok(())
    };
    let outcome = tokio::select! {
        outcome = restoring => outcome,
        cause = watch(link, &session, &mut listener) => {
            Err(Error::new(ErrorKind::Unavailable, "reconnect", cause))
        }
    };
    match outcome {
        Ok(()) => Ok((session, listener)),
        Err(error) => {
            session.end();
            lose(link);
            // The next session may hear of no alarm, nor of the end of one.
            if link.is_blocked() {
                link.unblock();
            }
            session.close().await;
            Err(error)
        }
    }
}
