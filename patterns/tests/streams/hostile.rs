//! Other sides that do what they should not.

use std::{io::Cursor, time::Duration};

use postrider_core::{ErrorKind, Queue, Topology};
use postrider_patterns::{
    HandlerError, Naming, Outgoing, StreamError, StreamReceiver, StreamSender, headers,
};
use serde_json::json;

use super::{
    hand::{Hand, chunk},
    world::{CHUNK, SOON, World, payload, soon},
};

const LETTERS: &[u8] = b"abcdefghijklmnop";

/// Lets a sender made by hand do something once it may send, and gives the code by which the
/// receiver ends the stream. Nothing may be left of it.
async fn ends_with(world: &World, length: Option<u64>, act: impl AsyncFnOnce(&mut Hand)) -> String {
    let transport = world.connect().await.transport;
    let (receiver, mut saves) = world.saver(&transport).await;
    let mut hand = Hand::sender(world, length).await;
    hand.credit().await;
    act(&mut hand).await;
    let fail = hand.hear_of("stream.fail").await;
    let mut progress = soon(saves.recv()).await.unwrap();
    while soon(progress.changed()).await.is_ok() {}
    receiver.stop(SOON).await;
    assert!(world.files().is_empty(), "{:?}", world.files());
    transport.close(SOON).await.unwrap();
    fail["code"].as_str().unwrap().to_owned()
}

pub(crate) async fn frames_out_of_order_and_twice_do_no_harm(world: World) {
    let transport = world.connect().await.transport;
    let (receiver, _saves) = world.saver(&transport).await;
    let mut hand = Hand::sender(&world, Some(15)).await;
    hand.credit().await;
    hand.close(&LETTERS[..15]).await;
    hand.chunks(&LETTERS[..15], &[3, 1, 1, 2, 3, 0, 0]).await;
    let done = hand.hear_of("stream.done").await;
    assert_eq!(done["length"], 15);
    // Until it is answered, the outcome is told again.
    assert_eq!(hand.hear_of("stream.done").await, done);
    hand.say("stream.bye", json!(null)).await;
    assert_eq!(std::fs::read(world.target()).unwrap(), &LETTERS[..15]);
    receiver.stop(SOON).await;
    assert_eq!(world.files(), ["film.mp4"]);
}

pub(crate) async fn what_is_missing_is_asked_for(world: World) {
    let transport = world.connect().await.transport;
    let (receiver, _saves) = world.saver(&transport).await;
    let mut hand = Hand::sender(&world, None).await;
    hand.credit().await;
    hand.chunks(LETTERS, &[1, 3]).await;
    let missing = loop {
        let credit = hand.credit().await;
        if credit["missing"] != json!([]) {
            break credit["missing"].clone();
        }
    };
    assert_eq!(missing, json!([[0, 1], [2, 3]]));
    hand.chunks(LETTERS, &[0, 2]).await;
    // The tail: only the close tells that there is one.
    hand.close(LETTERS).await;
    hand.hear_of("stream.done").await;
    receiver.stop(SOON).await;
}

pub(crate) async fn what_stays_missing_ends_it(world: World) {
    let code = ends_with(&world, None, async |hand| {
        hand.chunks(LETTERS, &[1]).await;
        for _ in 0..5 {
            while hand.credit().await["missing"] != json!([[0, 1]]) {}
            hand.say("stream.alive", json!({ "sent": 2 })).await;
        }
    });
    assert_eq!(code.await, "CHUNKS_MISSING");
}

pub(crate) async fn a_damaged_chunk_ends_it(world: World) {
    let code = ends_with(&world, None, async |hand| {
        hand.chunks(LETTERS, &[0]).await;
        let damaged = chunk(1, 4, b"efgh").with_header(headers::STREAM_CRC32C, 7);
        hand.send(damaged).await;
    });
    assert_eq!(code.await, "CORRUPT");
}

pub(crate) async fn a_truncated_chunk_ends_it(world: World) {
    let code = ends_with(&world, None, async |hand| {
        let mut truncated = chunk(0, 0, b"abcd");
        truncated.body.truncate(2);
        hand.send(truncated).await;
    });
    assert_eq!(code.await, "CORRUPT");
}

pub(crate) async fn two_contents_of_a_chunk_end_it(world: World) {
    let code = ends_with(&world, None, async |hand| {
        hand.chunk(0, 0, b"abcd").await;
        hand.chunk(0, 0, b"abcX").await;
    });
    assert_eq!(code.await, "CORRUPT");
}

pub(crate) async fn another_hash_ends_it(world: World) {
    let code = ends_with(&world, None, async |hand| {
        hand.chunks(LETTERS, &[0, 1, 2, 3]).await;
        hand.close(b"abcdefghijklmnoX").await;
    });
    assert_eq!(code.await, "CORRUPT");
}

pub(crate) async fn a_wrong_offset_ends_it(world: World) {
    let code = ends_with(&world, None, async |hand| hand.chunk(1, 5, b"efgh").await);
    assert_eq!(code.await, "BROKEN_PROTOCOL");
}

pub(crate) async fn a_chunk_that_is_too_long_ends_it(world: World) {
    let code = ends_with(&world, None, async |hand| hand.chunk(0, 0, LETTERS).await);
    assert_eq!(code.await, "BROKEN_PROTOCOL");
}

pub(crate) async fn a_chunk_without_its_headers_ends_it(world: World) {
    let code = ends_with(&world, None, async |hand| {
        let mut bare = chunk(0, 0, b"abcd");
        bare.headers.remove(headers::STREAM_OFFSET);
        hand.send(bare).await;
    });
    assert_eq!(code.await, "BROKEN_PROTOCOL");
}

pub(crate) async fn a_chunk_beyond_its_credit_ends_it(world: World) {
    let code = ends_with(&world, None, async |hand| hand.chunk(1_000, 4_000, b"abcd").await);
    assert_eq!(code.await, "BROKEN_PROTOCOL");
}

pub(crate) async fn more_than_was_announced_ends_it(world: World) {
    let code = ends_with(&world, Some(6), async |hand| hand.chunks(LETTERS, &[0, 1]).await);
    assert_eq!(code.await, "BROKEN_PROTOCOL");
}

pub(crate) async fn an_end_before_what_was_announced_ends_it(world: World) {
    let code = ends_with(&world, Some(1 << 30), async |hand| {
        hand.chunks(LETTERS, &[0, 1, 2, 3]).await;
        hand.close(LETTERS).await;
    });
    assert_eq!(code.await, "BROKEN_PROTOCOL");
}

pub(crate) async fn a_stream_without_an_end_is_ended(world: World) {
    let transport = world.connect().await.transport;
    let target = world.target();
    let receiver = StreamReceiver::new(world.service.clone())
        .max_length(400)
        .on(move |incoming: postrider_patterns::Incoming, _context| {
            let target = target.clone();
            async move { Ok(incoming.save_to(target).await.map(drop)?) }
        })
        .start(&transport)
        .await
        .unwrap();
    let mut hand = Hand::sender(&world, None).await;
    let (mut seq, mut until) = (0, 0);
    let fail = loop {
        match hand.hear().await {
            (kind, credit) if kind == "stream.credit" => {
                until = until.max(credit["until"].as_i64().unwrap());
                while seq < until {
                    hand.chunk(seq, seq * 4, b"more").await;
                    seq += 1;
                }
            }
            (kind, fail) if kind == "stream.fail" => break fail,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(fail["code"], "TOO_LARGE");
    assert!((100..=117).contains(&seq), "{seq}");
    receiver.stop(SOON).await;
    assert!(world.files().is_empty(), "{:?}", world.files());
}

pub(crate) async fn an_offer_that_makes_no_sense_is_refused(world: World) {
    let transport = world.connect().await.transport;
    let (receiver, mut reads) = world.reader(&transport).await;
    for (offer, code) in [
        (json!({ "chunk_size": 0, "length": null }), "BROKEN_PROTOCOL"),
        (json!({ "chunk_size": 1 << 30, "length": null }), "BROKEN_PROTOCOL"),
        (json!({ "chunk_size": 4, "length": 1_u64 << 60 }), "TOO_LARGE"),
        (json!({ "chunk_size": "4" }), "INVALID"),
    ] {
        let mut hand = Hand::sender(&world, Some(0)).await;
        hand.credit().await;
        hand.close(b"").await;
        hand.hear_of("stream.done").await;
        hand.say("stream.bye", json!(null)).await;
        soon(reads.recv()).await.unwrap().unwrap();
        hand.id = postrider_core::Env::system().new_id().to_string();
        hand.other = format!("stream_{}", world.service);
        hand.offer(offer).await;
        assert_eq!(hand.hear_of("stream.fail").await["code"], code);
    }
    receiver.stop(SOON).await;
}

pub(crate) async fn a_receiver_that_has_what_was_not_sent_ends_it(world: World) {
    let sending = world.connect().await.transport;
    let sender = world.sender(&sending).await;
    let offers = Hand::offers(&world).await;
    let outgoing = Outgoing::seekable(Cursor::new(payload(10 * CHUNK, 1)));
    let mut transfer = sender.start(&world.service, outgoing).unwrap();
    let mut hand = offers.take().await;
    hand.say("stream.credit", json!({ "received": 0, "until": 4 })).await;
    for seq in 0..4 {
        assert_eq!(hand.hear_of("stream.chunk").await, seq);
    }
    // No more came than was granted, and the next thing is a sign of life.
    assert_eq!(hand.hear().await, ("stream.alive".to_owned(), json!({ "sent": 4 })));
    hand.say("stream.credit", json!({ "received": 7, "until": 20 })).await;
    assert_eq!(hand.hear_of("stream.abort").await["code"], "BROKEN_PROTOCOL");
    assert_eq!(soon(transfer.finish()).await.unwrap_err().code(), "BROKEN_PROTOCOL");
}

pub(crate) async fn a_receiver_that_speaks_of_another_payload_is_not_believed(world: World) {
    let sending = world.connect().await.transport;
    let sender = world.sender(&sending).await;
    let offers = Hand::offers(&world).await;
    let outgoing = Outgoing::seekable(Cursor::new(payload(CHUNK, 1)));
    let mut transfer = sender.start(&world.service, outgoing).unwrap();
    let hand = offers.take().await;
    hand.say("stream.done", json!({ "length": CHUNK, "blake3": "0".repeat(64) })).await;
    assert_eq!(soon(transfer.finish()).await.unwrap_err().code(), "CORRUPT");
}

pub(crate) async fn a_second_receiver_is_sent_away_while_the_first_is_there(world: World) {
    let sending = world.connect().await.transport;
    let sender = world.sender(&sending).await;
    let offers = Hand::offers(&world).await;
    let outgoing = Outgoing::seekable(Cursor::new(payload(CHUNK, 1)));
    let transfer = sender.start(&world.service, outgoing).unwrap();
    let mut first = offers.take().await;
    let mut second = Hand::sender(&world, None).await;
    (second.id, second.other) = (first.id.clone(), first.other.clone());
    first.say("stream.credit", json!({ "received": 0, "until": 4 })).await;
    assert_eq!(first.hear_of("stream.chunk").await, 0);
    second.say("stream.credit", json!({ "received": 0, "until": 4 })).await;
    assert_eq!(second.hear_of("stream.abort").await["code"], "SUPERSEDED");
    drop(transfer);
    assert_eq!(first.hear_of("stream.abort").await["code"], "ABORTED");
    // What is said later is answered, in case that was not heard.
    first.say("stream.credit", json!({ "received": 1, "until": 5 })).await;
    assert_eq!(first.hear_of("stream.abort").await["code"], "UNKNOWN_STREAM");
}

pub(crate) async fn a_receiver_that_has_more_than_there_is_ends_it(world: World) {
    let sending = world.connect().await.transport;
    let sender = world.sender(&sending).await;
    // What is not announced is known when it was read.
    for length in [Some(10 * CHUNK as u64), None] {
        let offers = Hand::offers(&world).await;
        let mut outgoing = Outgoing::seekable(Cursor::new(payload(10 * CHUNK, 1)));
        if let Some(length) = length {
            outgoing = outgoing.with_length(length);
        }
        let mut transfer = sender.start(&world.service, outgoing).unwrap();
        let hand = offers.take().await;
        hand.say("stream.credit", json!({ "received": u64::MAX - 1, "until": u64::MAX })).await;
        assert_eq!(soon(transfer.finish()).await.unwrap_err().code(), "BROKEN_PROTOCOL");
        // The next one wants the queue of offers.
        hand.transport.close(SOON).await.unwrap();
    }
}

pub(crate) async fn a_receiver_that_cannot_make_its_queue_does_not_ask_without_a_pause(
    world: World,
) {
    let (sending, receiving) = (world.connect().await.transport, world.connect().await.transport);
    let taken = format!("taken-{}", world.service);
    let topology = Topology::new().queue(Queue::exclusive(taken.clone()));
    sending.declare(&topology).await.unwrap();
    let receiver = StreamReceiver::new(world.service.clone())
        .naming(Naming::default().with_transfer_queue(taken))
        .on(|_incoming, _context| async { panic!("it cannot come to this") })
        .start(&receiving)
        .await
        .unwrap();
    let sender = StreamSender::builder(&sending).accept_timeout(Duration::from_secs(5));
    let sender = sender.connect().await.unwrap();
    let outgoing = Outgoing::seekable(Cursor::new("x"));
    // On virtual time an endless loop would be one.
    let error = soon(sender.send(&world.service, outgoing)).await.unwrap_err();
    assert!(matches!(error, StreamError::Unavailable { .. }), "{error}");
    receiver.stop(SOON).await;

    let long = StreamReceiver::new("x".repeat(230)).on(|_incoming, _context| async { Ok(()) });
    assert_eq!(long.start(&receiving).await.unwrap_err().kind(), ErrorKind::Invalid);
}

pub(crate) async fn senders_that_go_without_a_word_do_not_pile_up(world: World) {
    let receiving = world.connect().await.transport;
    let receiver = StreamReceiver::new(world.service.clone())
        .concurrency(1)
        .idle_timeout(Duration::from_secs(20))
        .on(|_incoming, _context| async { Err(HandlerError::rejected("NO", "no")) })
        .start(&receiving)
        .await
        .unwrap();
    // Four wait beside their handlers' place, one in it.
    let mut silent = Vec::new();
    for _ in 0..5 {
        let mut hand = Hand::sender(&world, None).await;
        assert_eq!(hand.hear_of("stream.fail").await["code"], "NO");
        silent.push(hand);
    }
    let mut sixth = Hand::sender(&world, None).await;
    let refused = sixth.hear_of("stream.fail");
    let early = tokio::time::timeout(Duration::from_secs(5), refused).await;
    assert!(early.is_err(), "there is no place before one of the others is given up");
    // A farewell makes room.
    silent[4].say("stream.bye", json!(null)).await;
    assert_eq!(sixth.hear_of("stream.fail").await["code"], "NO");
    receiver.stop(SOON).await;
}
