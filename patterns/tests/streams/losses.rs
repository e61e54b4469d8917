//! Connections that are lost, processes that end.

use std::time::Duration;

use postrider_patterns::{
    ContentHash, Incoming, Outgoing, StreamError, StreamReceiver, StreamSender,
};
use postrider_testkit::harness::Connection;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use super::{
    hand::Hand,
    world::{CHUNK, SOON, World, comes_to, gated, payload, soon},
};

/// The shortest idle timeout.
const SIX: Duration = Duration::from_secs(6);

async fn five_closes(world: World, cut: impl AsyncFn(usize, &Connection, &Connection)) {
    let (sending, receiving) = (world.connect().await, world.connect().await);
    let (receiver, mut reads) = world.reader(&receiving.transport).await;
    let sender = world.sender(&sending.transport).await;
    let body = payload(300 * CHUNK + 5, 4);
    let (source, gate) = gated(body.clone());
    // Read once: what is lost is sent again from what is kept.
    let mut transfer = sender.start(&world.service, Outgoing::reader(source)).unwrap();
    for round in 1..=5 {
        let bytes = (50 * round * CHUNK) as u64;
        gate.open_to(bytes);
        comes_to(&mut transfer.progress(), bytes - 20 * CHUNK as u64).await;
        // With chunks under way.
        cut(round, &sending, &receiving).await;
    }
    gate.open_to(u64::MAX);
    let receipt = soon(transfer.finish()).await.unwrap();
    assert_eq!(receipt.hash, ContentHash::of(&body));
    assert!(reads.recv().await.unwrap().unwrap().body == body);
    receiver.stop(SOON).await;
}

pub(crate) async fn five_closes_at_the_sender(world: World) {
    five_closes(world, async |_round, sending, _receiving| sending.cut().await).await;
}

pub(crate) async fn five_closes_at_the_receiver(world: World) {
    five_closes(world, async |_round, _sending, receiving| receiving.cut().await).await;
}

pub(crate) async fn five_closes_here_and_there_and_at_both(world: World) {
    five_closes(world, async |round, sending, receiving| {
        if round != 1 {
            sending.cut().await;
        }
        if round != 2 {
            receiving.cut().await;
        }
    })
    .await;
}

pub(crate) async fn the_end_is_told_though_the_connection_is_lost_with_it(world: World) {
    let (sending, receiving) = (world.connect().await, world.connect().await);
    let (tell, mut told) = mpsc::channel(1);
    let (go, gone) = oneshot::channel::<()>();
    let gone = std::sync::Mutex::new(Some(gone));
    let receiver = StreamReceiver::new(world.service.clone())
        .on(move |mut incoming: Incoming, _context| {
            let (tell, gone) = (tell.clone(), gone.lock().unwrap().take());
            async move {
                tokio::io::copy(&mut incoming, &mut tokio::io::sink()).await?;
                tell.send(()).await?;
                Ok(gone.unwrap().await?)
            }
        })
        .start(&receiving.transport)
        .await
        .unwrap();
    let sender = world.sender(&sending.transport).await;
    let source = std::io::Cursor::new(payload(10 * CHUNK, 1));
    let mut transfer = sender.start(&world.service, Outgoing::seekable(source)).unwrap();
    soon(told.recv()).await.unwrap();
    // The outcome goes to a queue that is lost.
    go.send(()).unwrap();
    sending.cut().await;
    assert_eq!(soon(transfer.finish()).await.unwrap().length, 10 * CHUNK as u64);
    receiver.stop(SOON).await;
}

pub(crate) async fn another_receiver_takes_over_from_one_that_is_gone(world: World) {
    let (sending, gone) = (world.connect().await, world.connect().await);
    let (first, _reads) = world.reader(&gone.transport).await;
    let sender = world.sender(&sending.transport).await;
    let body = payload(100 * CHUNK, 5);
    let (source, gate) = gated(body.clone());
    gate.open_to(50 * CHUNK as u64);
    let mut transfer = sender.start(&world.service, Outgoing::seekable(source)).unwrap();
    comes_to(&mut transfer.progress(), 50 * CHUNK as u64).await;
    let (second, mut reads) = world.reader(&world.connect().await.transport).await;
    // It ends without a word.
    gone.transport.close(Duration::ZERO).await.unwrap_or_default();
    gate.open_to(u64::MAX);
    assert_eq!(soon(transfer.finish()).await.unwrap().hash, ContentHash::of(&body));
    assert!(reads.recv().await.unwrap().unwrap().body == body);
    second.stop(SOON).await;
    drop(first);
}

pub(crate) async fn a_source_that_is_read_once_does_not_begin_anew(world: World) {
    let (sending, receiving) = (world.connect().await, world.connect().await);
    let (first, _reads) = world.reader(&receiving.transport).await;
    let sender = world.sender(&sending.transport).await;
    let (source, gate) = gated(payload(100 * CHUNK, 5));
    gate.open_to(50 * CHUNK as u64);
    let mut transfer = sender.start(&world.service, Outgoing::reader(source)).unwrap();
    comes_to(&mut transfer.progress(), 50 * CHUNK as u64).await;
    let (second, mut reads) = world.reader(&world.connect().await.transport).await;
    first.stop(Duration::ZERO).await;
    let error = soon(transfer.finish()).await.unwrap_err();
    assert!(matches!(error, StreamError::NotResumable { offset: 0 }), "{error}");
    let error = soon(reads.recv()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
    second.stop(SOON).await;
}

pub(crate) async fn a_receiver_that_stops_gives_its_streams_to_another(world: World) {
    let (sending, receiving) = (world.connect().await, world.connect().await);
    let (first, _reads) = world.reader(&receiving.transport).await;
    let sender = world.sender(&sending.transport).await;
    let body = payload(100 * CHUNK, 5);
    let (source, gate) = gated(body.clone());
    gate.open_to(50 * CHUNK as u64);
    let mut transfer = sender.start(&world.service, Outgoing::seekable(source)).unwrap();
    comes_to(&mut transfer.progress(), 50 * CHUNK as u64).await;
    let (second, mut reads) = world.reader(&world.connect().await.transport).await;
    let report = first.stop(Duration::ZERO).await;
    assert_eq!((report.released, report.still_running), (1, 0));
    gate.open_to(u64::MAX);
    assert_eq!(soon(transfer.finish()).await.unwrap().hash, ContentHash::of(&body));
    assert!(reads.recv().await.unwrap().unwrap().body == body);
    second.stop(SOON).await;
}

pub(crate) async fn a_sender_that_comes_back_goes_on_where_it_was(world: World) {
    let (sending, receiving) = (world.connect().await, world.connect().await);
    let (receiver, mut reads) = world.reader(&receiving.transport).await;
    let sender = world.sender(&sending.transport).await;
    let body = payload(100 * CHUNK, 6);
    let (source, gate) = gated(body.clone());
    gate.open_to(50 * CHUNK as u64);
    let mut transfer = sender.start(&world.service, Outgoing::seekable(source)).unwrap();
    comes_to(&mut transfer.progress(), 50 * CHUNK as u64).await;
    let id = transfer.id();
    // The process ends: its connection goes, and nobody says so.
    sending.transport.close(Duration::ZERO).await.unwrap_or_default();
    let error = soon(transfer.finish()).await.unwrap_err();
    assert!(error.is_resumable(), "{error}");

    let sending = world.connect().await;
    let sender = world.sender(&sending.transport).await;
    let (source, gate) = gated(body.clone());
    let outgoing = Outgoing::seekable(source).with_id(id);
    let mut transfer = sender.start(&world.service, outgoing).unwrap();
    // Before anything is read again, the receiver has said what it has.
    comes_to(&mut transfer.progress(), 50 * CHUNK as u64).await;
    gate.open_to(u64::MAX);
    assert_eq!(soon(transfer.finish()).await.unwrap().hash, ContentHash::of(&body));
    assert!(reads.recv().await.unwrap().unwrap().body == body);
    receiver.stop(SOON).await;
}

pub(crate) async fn a_receiver_that_hears_nothing_ends(world: World) {
    let (sending, receiving) = (world.connect().await, world.connect().await);
    let (tell, mut told) = mpsc::channel(1);
    let receiver = StreamReceiver::new(world.service.clone())
        .idle_timeout(SIX)
        .on(move |mut incoming: Incoming, _context| {
            let tell = tell.clone();
            async move {
                let copied = tokio::io::copy(&mut incoming, &mut tokio::io::sink()).await;
                Ok(tell.send(copied).await?)
            }
        })
        .start(&receiving.transport)
        .await
        .unwrap();
    let sender = world.sender(&sending.transport).await;
    let (source, gate) = gated(payload(10 * CHUNK, 6));
    gate.open_to(CHUNK as u64);
    let transfer = sender.start(&world.service, Outgoing::seekable(source)).unwrap();
    comes_to(&mut transfer.progress(), CHUNK as u64).await;
    sending.transport.close(Duration::ZERO).await.unwrap_or_default();
    let error = soon(told.recv()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
    receiver.stop(SOON).await;
}

pub(crate) async fn a_sender_that_hears_nothing_ends(world: World) {
    let sending = world.connect().await.transport;
    let builder = StreamSender::builder(&sending).chunk_size(CHUNK as u32).idle_timeout(SIX);
    let sender = builder.connect().await.unwrap();
    let offers = Hand::offers(&world).await;
    let source = std::io::Cursor::new(payload(10 * CHUNK, 6));
    let mut transfer = sender.start(&world.service, Outgoing::seekable(source)).unwrap();
    let hand = offers.take().await;
    hand.say("stream.credit", json!({ "received": 0, "until": 2 })).await;
    let error = soon(transfer.finish()).await.unwrap_err();
    assert!(matches!(error, StreamError::IdleTimeout { after: SIX }), "{error}");
}

pub(crate) async fn a_sender_that_comes_back_while_there_is_no_room_is_heard(world: World) {
    let (sending, receiving) = (world.connect().await, world.connect().await);
    let receiver = StreamReceiver::new(world.service.clone())
        .memory(16 * CHUNK as u64)
        .on(|mut incoming: Incoming, _context| async move {
            tokio::io::copy(&mut incoming, &mut tokio::io::sink()).await?;
            Ok(())
        })
        .start(&receiving.transport)
        .await
        .unwrap();
    let sender = world.sender(&sending.transport).await;
    let (source, gate) = gated(payload(10 * CHUNK, 1));
    gate.open_to(CHUNK as u64);
    let mut first = sender.start(&world.service, Outgoing::reader(source)).unwrap();
    comes_to(&mut first.progress(), CHUNK as u64).await;

    // It waits for the memory that the first one has, and ends.
    let gone = world.connect().await.transport;
    let body = payload(10 * CHUNK, 2);
    let outgoing = || Outgoing::seekable(std::io::Cursor::new(body.clone()));
    let mut transfer = world.sender(&gone).await.start(&world.service, outgoing()).unwrap();
    let offered = Duration::from_millis(500);
    tokio::time::sleep(offered).await;
    gone.close(Duration::ZERO).await.unwrap_or_default();
    soon(transfer.finish()).await.unwrap_err();

    let again = outgoing().with_id(transfer.id());
    let mut again = sender.start(&world.service, again).unwrap();
    tokio::time::sleep(offered).await;
    gate.open_to(u64::MAX);
    soon(first.finish()).await.unwrap();
    let in_time = tokio::time::timeout(Duration::from_secs(20), again.finish());
    assert_eq!(in_time.await.expect("at once").unwrap().hash, ContentHash::of(&body));
    receiver.stop(SOON).await;
}
