//! Dead letters are seen and stay where they are.

use std::time::Duration;

use postrider_core::{
    Address, ConsumerOptions, Envelope, ErrorKind, Message, PublisherExt, PublisherOptions,
};
use postrider_patterns::{
    DeadLetterFilter, DeadLetters, DeadMessage, DeadReason, ErrorClass, SubmitOptions,
};

use super::world::{Job, World, comes_to, ids, one, soon, sorted};

pub(crate) async fn looking_takes_nothing_and_keeps_the_order(world: World) {
    let transport = world.transport().await;
    let letters = world.bury(&transport, 5).await;
    // More often than any delivery limit.
    for _ in 0..25 {
        assert_eq!(ids(&letters.peek(2).await.unwrap()), [0, 1]);
    }
    assert_eq!(ids(&letters.peek(100).await.unwrap()), [0, 1, 2, 3, 4]);
    let odd = DeadLetterFilter::all().code("ODD");
    assert_eq!(ids(&letters.list(&odd).await.unwrap()), [1, 3]);
    assert_eq!(letters.peek(0).await.unwrap().len(), 0);
    assert_eq!(letters.count().await.unwrap(), 5);
    assert_eq!(ids(&letters.peek(100).await.unwrap()), [0, 1, 2, 3, 4]);
}

pub(crate) async fn what_the_broker_gave_up_is_seen_like_the_rest(world: World) {
    let transport = world.transport().await;
    let tasks = world.tasks(&transport).await;
    let letters = world.letters(&transport);
    let soon_over = SubmitOptions::default().with_ttl(Duration::from_millis(20));
    let id = tasks.submit_with(&Job { number: 1 }, soon_over).await.unwrap();
    let dead = one(&letters).await;
    assert_eq!(dead.message().message_id.as_deref(), Some(id.as_str()));
    assert_eq!(dead.reason(), DeadReason::Expired);
    assert_eq!(dead.origin_queue(), Some(world.queue()));
    assert_eq!((dead.class(), dead.code(), dead.attempts()), (None, None, None));
    let deaths = dead.deaths();
    assert_eq!((deaths.len(), deaths[0].count, &*deaths[0].queue), (1, 1, &*world.queue()));
    assert!(dead.published_at() <= dead.dead_lettered_at().map(|at| at + Duration::from_secs(1)));
    assert_eq!(letters.discard(&DeadLetterFilter::all()).await.unwrap().done, 1);

    tasks.submit(&Job { number: 2 }).await.unwrap();
    let mut consumer =
        transport.consumer(&world.queue(), ConsumerOptions::default()).await.unwrap();
    soon(consumer.recv()).await.unwrap().unwrap().reject("not mine");
    let dead = one(&letters).await;
    assert_eq!(dead.reason(), DeadReason::Rejected);
    let rejected = DeadLetterFilter::all().reason(DeadReason::Rejected);
    assert_eq!(letters.list(&rejected).await.unwrap().len(), 1);
}

pub(crate) async fn a_list_is_filtered(world: World) {
    let transport = world.transport().await;
    let letters = world.bury(&transport, 6).await;
    let all = DeadLetterFilter::all;
    for (filter, expected) in [
        (all(), &[0, 1, 2, 3, 4, 5][..]),
        (all().code("EVEN"), &[0, 2, 4]),
        (all().class(ErrorClass::Invalid).message_id("3"), &[3]),
        (all().class(ErrorClass::Internal), &[]),
        (all().header("postrider-error-code", "ODD"), &[1, 3, 5]),
        (all().matching(|dead| dead.message().body.ends_with(b":4}}")), &[4]),
    ] {
        assert_eq!(ids(&letters.list(&filter).await.unwrap()), expected);
    }
}

pub(crate) async fn a_dead_letter_goes_through_a_file_unharmed(world: World) {
    let transport = world.transport().await;
    let letters = world.bury(&transport, 0).await;
    let publisher = transport.publisher(PublisherOptions::default()).await.unwrap();
    let message = Message::new(vec![0x81, 0xff, 0])
        .with_content_type("application/msgpack")
        .with_type("job")
        .with_message_id("7")
        .with_correlation_id("8")
        .with_key("customer-3")
        .with_header("tenant", "north")
        .with_header("tries", 3)
        .with_header("raw", bytes::Bytes::from_static(&[0, 255]));
    let address = Address::queue(world.queue());
    publisher.publish(Envelope::new(address, message.clone())).await.unwrap();
    let _running =
        world.worker().on(|_job: Job, _| async { Ok(()) }).start(&transport).await.unwrap();
    let dead = one(&letters).await;
    let json = serde_json::to_string_pretty(&dead).unwrap();

    let read: DeadMessage = serde_json::from_str(&json).unwrap();
    assert_eq!(read.message(), dead.message(), "{json}");
    let elsewhere = DeadLetters::of(&transport, format!("{}other", world.prefix))
        .with_naming(world.naming.clone());
    elsewhere.import(&read).await.unwrap();
    let imported = one(&elsewhere).await;
    assert_eq!((imported.code(), imported.attempts()), (dead.code(), dead.attempts()));
    assert_eq!(imported.dead_lettered_at(), dead.dead_lettered_at());
    let original = imported.original();
    assert_eq!(
        (original.body, sorted(&original.headers)),
        (message.body, sorted(&message.headers))
    );
    assert_eq!((&original.message_id, &original.key), (&message.message_id, &message.key));
}

pub(crate) async fn a_queue_that_is_not_there_is_an_error(world: World) {
    let transport = world.transport().await;
    let letters = world.letters(&transport);
    let kinds = [
        letters.count().await.unwrap_err().kind(),
        letters.peek(1).await.unwrap_err().kind(),
        letters.discard(&DeadLetterFilter::all()).await.unwrap_err().kind(),
    ];
    assert_eq!(kinds, [ErrorKind::NotFound; 3]);
    let letters = world.bury(&transport, 0).await;
    assert_eq!(letters.peek(1).await.unwrap().len(), 0);
    comes_to(&letters, 0).await;
}
