//! The answers to requests, by every means that the broker has.

use std::{sync::Arc, time::Duration};

use postrider_core::{
    Address, Delivery, Envelope, ErrorKind, Message, Publisher, PublisherExt, PublisherOptions,
    Replies, ReplyMode, ReplyOptions, Transport, Verdict,
};

use super::{Behaviour, Need};
use crate::{
    Scene,
    harness::Fault,
    scene::{refused, text},
};

const MODES: [ReplyMode; 3] =
    [ReplyMode::ExclusiveQueue, ReplyMode::TemporaryQueue, ReplyMode::Direct];

/// How often a connection is lost.
const LOSSES: u64 = 3;

/// One that no behaviour here waits for.
const HEARTBEAT: Duration = Duration::from_secs(30);

pub(super) fn behaviours() -> Vec<Behaviour> {
    const NEEDS: &[Need] = &[Need::Topology];
    const LOSS: &[Need] = &[Need::Topology, Need::Fault(Fault::ConnectionLoss)];
    const DIRECT: &[Need] = &[Need::Topology, Need::DirectReplies];
    const NETWORK: &[Need] = &[Need::Topology, Need::Fault(Fault::Network)];
    vec![
        Behaviour::new(answers_come_from_anybody, NEEDS),
        Behaviour::new(what_a_broker_has_not_is_refused, NEEDS),
        Behaviour::new(answers_wait_for_their_reader_within_the_prefetch, NEEDS),
        Behaviour::new(after_losses_answers_come_to_the_address_of_the_moment, LOSS),
        Behaviour::new(an_address_is_told_when_answers_find_their_way, NETWORK),
        Behaviour::new(a_requester_that_is_gone_is_known_to_be, NEEDS),
        Behaviour::new(a_requester_that_holds_answers_closes_when_they_are_settled, NEEDS),
        Behaviour::new(a_direct_answer_comes_once_however_it_is_settled, DIRECT),
    ]
}

/// The modes that the broker has: the one that is said to be the lightest among them.
fn modes(scene: &Scene) -> Vec<ReplyMode> {
    let lightest = scene.capabilities().reply_mode;
    match MODES.iter().position(|mode| *mode == lightest) {
        Some(position) => MODES[..=position].to_vec(),
        None => panic!("{lightest:?} is no mode that is known of"),
    }
}

async fn replies(scene: &Scene, transport: &Arc<dyn Transport>, mode: ReplyMode) -> Replies {
    let options = ReplyOptions::new(scene.name(&format!("replies-{mode:?}"))).with_mode(mode);
    let replies = transport.replies(options.with_prefetch(100)).await;
    replies.unwrap_or_else(|error| panic!("answers by {mode:?}: {error}"))
}

async fn address(scene: &Scene, replies: &Replies) -> Arc<str> {
    let address = scene.soon("there is an address", replies.address().get()).await;
    address.expect("the answers have not ended")
}

fn answer(to: &str, body: impl Into<String>) -> Envelope {
    let message = Message::new(body.into()).with_correlation_id("7").transient();
    Envelope::new(Address::queue(to.to_owned()), message)
}

async fn next(scene: &Scene, replies: &mut Replies) -> Delivery {
    let delivery = scene.soon("an answer", replies.recv()).await;
    delivery.expect("the answers go on").expect("an answer")
}

async fn responder(scene: &Scene) -> Arc<dyn Publisher> {
    let responding = scene.connect().await.transport;
    responding.publisher(PublisherOptions::default()).await.expect("a publisher")
}

async fn answers_come_from_anybody(scene: Scene) {
    let responder = responder(&scene).await;
    for mode in modes(&scene) {
        let mut replies = replies(&scene, scene.transport(), mode).await;
        let to = address(&scene, &replies).await;
        assert!(replies.address().is(&to));
        let own = scene.publisher().await;
        for (publisher, body) in [(&responder, "another's"), (&own, "its own")] {
            publisher.publish(answer(&to, body)).await.expect("an answer is taken");
            let delivery = next(&scene, &mut replies).await;
            assert_eq!(text(&delivery), body, "{mode:?}");
            assert_eq!(delivery.message().correlation_id.as_deref(), Some("7"), "{mode:?}");
            let info = delivery.info();
            assert_eq!((info.attempt, info.redelivered), (1, false), "{mode:?}");
            assert_eq!(*info.queue, *to, "{mode:?}");
            delivery.ack();
        }
    }
}

async fn what_a_broker_has_not_is_refused(scene: Scene) {
    let there = modes(&scene);
    for mode in MODES.into_iter().filter(|mode| !there.contains(mode)) {
        let options = ReplyOptions::new(scene.name("replies")).with_mode(mode);
        let outcome = scene.transport().replies(options).await;
        refused(outcome, &[ErrorKind::Unsupported], "answers by what is not there");
    }
    for mode in there {
        let options = ReplyOptions::new(scene.name("replies")).with_mode(mode).with_prefetch(0);
        let outcome = scene.transport().replies(options).await;
        refused(outcome, &[ErrorKind::Invalid], "a prefetch of 0");
    }
}

async fn answers_wait_for_their_reader_within_the_prefetch(scene: Scene) {
    let responder = responder(&scene).await;
    for mode in modes(&scene) {
        let mut replies = replies(&scene, scene.transport(), mode).await;
        let to = address(&scene, &replies).await;
        // Half of the prefetch is there whenever what came before is settled.
        for round in 0..10 {
            let bodies: Vec<_> = (0..50).map(|number| format!("{round}.{number}")).collect();
            for body in &bodies {
                responder.publish(answer(&to, body)).await.expect("an answer is taken");
            }
            for body in &bodies {
                let delivery = next(&scene, &mut replies).await;
                assert_eq!(text(&delivery), *body, "{mode:?}");
                delivery.ack();
            }
        }
    }
}

async fn after_losses_answers_come_to_the_address_of_the_moment(scene: Scene) {
    let responder = responder(&scene).await;
    for mode in modes(&scene) {
        let connection = scene.connect().await;
        let mut events = connection.transport.events();
        let mut replies = replies(&scene, &connection.transport, mode).await;
        let mut to = address(&scene, &replies).await;
        for loss in 1..=LOSSES {
            connection.cut().await;
            scene.restored(&mut events, loss + 1).await;
            let before = to;
            to = address(&scene, &replies).await;
            if mode == ReplyMode::ExclusiveQueue {
                assert_eq!(to, before);
            } else {
                assert_ne!(to, before, "{mode:?}");
                assert!(!replies.address().is(&before));
                let confirm = scene.send(&*responder, answer(&before, "too late")).await;
                is_told(&scene.verdict(confirm).await, mode);
            }
            responder.publish(answer(&to, format!("{loss}"))).await.expect("an answer is taken");
            let delivery = next(&scene, &mut replies).await;
            assert_eq!(text(&delivery), format!("{loss}"), "{mode:?}");
            delivery.ack();
        }
    }
}

async fn an_address_is_told_when_answers_find_their_way(scene: Scene) {
    let responder = responder(&scene).await;
    // The broker hears late of what the requester says, and the responder is nearer to it.
    let (proxy, requester) = scene.connect_through_proxy(HEARTBEAT).await;
    proxy.delay(Duration::from_millis(100));
    for mode in modes(&scene) {
        let mut replies = replies(&scene, &requester.transport, mode).await;
        let to = address(&scene, &replies).await;
        responder.publish(answer(&to, "at once")).await.expect("an answer is taken");
        let delivery = next(&scene, &mut replies).await;
        assert_eq!(text(&delivery), "at once", "{mode:?}");
        delivery.ack();
    }
}

/// What a responder is told of an answer to nobody: by direct reply-to it may be taken and lost.
fn is_told(verdict: &Verdict, mode: ReplyMode) {
    let is_told = match verdict {
        Verdict::Unroutable | Verdict::Rejected(_) => true,
        Verdict::Accepted => mode == ReplyMode::Direct,
        Verdict::Unknown(_) => false,
    };
    assert!(is_told, "an answer to nobody by {mode:?}: {verdict:?}");
}

async fn a_requester_that_is_gone_is_known_to_be(scene: Scene) {
    let responding = scene.connect().await.transport;
    for mode in modes(&scene) {
        let asking = scene.connect().await.transport;
        // One that leaves, and one that goes with its connection.
        let first = replies(&scene, &asking, mode).await;
        let to = address(&scene, &first).await;
        let known = first.address().clone();
        match responding.queue_info(&to).await {
            Ok(Some(info)) => assert_eq!(info.consumers, 1, "{mode:?}"),
            // It is there, and another's.
            other => drop(refused(other, &[ErrorKind::Locked], "asking about another's queue")),
        }
        drop(first);
        goes_nowhere(&scene, &responding, &to, mode).await;
        if mode != ReplyMode::ExclusiveQueue {
            let ended = scene.soon("the address ends", known.get()).await;
            refused(ended, &[ErrorKind::Closed], "an address of nobody");
        }
        let second = replies(&scene, &asking, mode).await;
        let to = address(&scene, &second).await;
        asking.close(Duration::from_secs(5)).await.expect("closing with nothing under way");
        goes_nowhere(&scene, &responding, &to, mode).await;
    }
}

/// Waits until a requester is gone, as its responder sees it.
async fn goes_nowhere(scene: &Scene, responding: &Arc<dyn Transport>, to: &str, mode: ReplyMode) {
    scene
        .eventually("the requester is gone", async || match responding.queue_info(to).await {
            Ok(None) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    let responder = responding.publisher(PublisherOptions::default()).await.expect("a publisher");
    let confirm = scene.send(&*responder, answer(to, "anybody?")).await;
    is_told(&scene.verdict(confirm).await, mode);
}

async fn a_requester_that_holds_answers_closes_when_they_are_settled(scene: Scene) {
    let responder = responder(&scene).await;
    for mode in modes(&scene) {
        let asking = scene.connect().await.transport;
        let mut replies = replies(&scene, &asking, mode).await;
        let to = address(&scene, &replies).await;
        for body in ["held", "unread"] {
            responder.publish(answer(&to, body)).await.expect("an answer is taken");
        }
        let held = next(&scene, &mut replies).await;
        drop(replies);
        let mut closing = Box::pin(asking.close(scene.patience()));
        // A declared queue may be gone by now, with all that was to be settled.
        if mode != ReplyMode::ExclusiveQueue {
            let early = tokio::time::timeout(scene.quiet(), &mut closing).await;
            assert!(early.is_err(), "{mode:?}: it closed with an answer unsettled: {early:?}");
        }
        held.ack();
        scene.soon("it closes", closing).await.expect("all is settled");
    }
}

async fn a_direct_answer_comes_once_however_it_is_settled(scene: Scene) {
    let responder = responder(&scene).await;
    let mut replies = replies(&scene, scene.transport(), ReplyMode::Direct).await;
    let to = address(&scene, &replies).await;
    let ways: [fn(Delivery); 5] = [
        Delivery::ack,
        |delivery| delivery.retry(Duration::ZERO),
        |delivery| delivery.retry(Duration::from_millis(1)),
        |delivery| delivery.reject("no"),
        Delivery::release,
    ];
    for (number, settle) in ways.into_iter().enumerate() {
        responder.publish(answer(&to, number.to_string())).await.expect("an answer is taken");
        let delivery = next(&scene, &mut replies).await;
        assert_eq!(text(&delivery), number.to_string());
        assert_eq!(delivery.info().attempt, 1);
        settle(delivery);
    }
    let more = tokio::time::timeout(scene.quiet(), replies.recv()).await;
    assert!(more.is_err(), "an answer came again: {more:?}");
}
