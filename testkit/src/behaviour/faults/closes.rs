//! Connections closed by the broker, five times in a row, in the middle of traffic.

use postrider_core::TransportEvent;

use super::{
    Behaviour, Need,
    traffic::{Again, Traffic, WINDOW},
};
use crate::{
    Scene,
    harness::{Connection, Fault},
};

pub(super) fn behaviours() -> Vec<Behaviour> {
    const LOSS: &[Need] = &[Need::Topology, Need::Fault(Fault::ConnectionLoss)];
    vec![
        Behaviour::new(publishing_survives_five_closes, LOSS),
        Behaviour::new(consuming_survives_five_closes, LOSS),
        Behaviour::new(both_survive_five_closes, LOSS),
        Behaviour::new(each_part_of_a_connection_may_be_closed, LOSS),
    ]
}

/// How often a connection is closed.
const CLOSES: usize = 5;

/// What goes through each queue.
const MESSAGES: usize = 10_000;

/// Closes a connection at the `place`th of its turns, and waits until it is back.
async fn close(scene: &Scene, victim: &Connection, epoch: usize) {
    let mut events = victim.transport.events();
    victim.cut().await;
    scene.restored(&mut events, epoch as u64).await;
}

async fn publishing_survives_five_closes(scene: Scene) {
    let victim = scene.connect().await;
    let mut traffic = Traffic::start(&scene, &victim.transport, scene.transport(), MESSAGES).await;
    for turn in 1..=CLOSES {
        traffic.is_sent(turn * MESSAGES / (CLOSES + 1)).await;
        close(&scene, &victim, turn + 1).await;
    }
    traffic.ends(&scene, CLOSES * WINDOW, Again::Nothing).await;
}

async fn consuming_survives_five_closes(scene: Scene) {
    let victim = scene.connect().await;
    let traffic = Traffic::start(&scene, scene.transport(), &victim.transport, MESSAGES).await;
    for turn in 1..=CLOSES {
        traffic.has_come(turn * MESSAGES / (CLOSES + 1)).await;
        close(&scene, &victim, turn + 1).await;
    }
    traffic.ends(&scene, 0, Again::Marked).await;
}

async fn both_survive_five_closes(scene: Scene) {
    let victim = scene.connect().await;
    let mut traffic = Traffic::start(&scene, &victim.transport, &victim.transport, MESSAGES).await;
    for turn in 1..=CLOSES {
        traffic.is_sent(turn * MESSAGES / (CLOSES + 1)).await;
        close(&scene, &victim, turn + 1).await;
    }
    traffic.ends(&scene, CLOSES * WINDOW, Again::Marked).await;
}

/// A transport may be several connections; the loss of one is a loss, whichever it is.
async fn each_part_of_a_connection_may_be_closed(scene: Scene) {
    const PARTS: usize = 2;
    let victim = scene.connect().await;
    let mut traffic = Traffic::start(&scene, &victim.transport, &victim.transport, 2_000).await;
    for turn in 1..=PARTS {
        traffic.is_sent(turn * 500).await;
        let mut events = victim.transport.events();
        victim.cut_part().await;
        let lost =
            |event: &TransportEvent| matches!(event, TransportEvent::Lost { .. }).then_some(());
        scene.event(&mut events, "the event Lost", lost).await;
        scene.restored(&mut events, turn as u64 + 1).await;
    }
    traffic.ends(&scene, PARTS * WINDOW, Again::Marked).await;
}
