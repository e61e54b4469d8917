//! Payloads that arrive.

use std::{io::Cursor, time::Duration};

use futures_util::{StreamExt, stream};
use postrider_patterns::{
    Codec, ContentHash, ErrorClass, HandlerError, Incoming, Outgoing, StreamError, StreamReceiver,
    StreamSender,
};
use tokio::{
    io::AsyncReadExt,
    sync::{mpsc, oneshot},
};

use super::world::{CHUNK, SOON, World, comes_to, gated, payload, soon};

pub(crate) async fn a_payload_of_any_length_arrives_with_what_was_said_of_it(world: World) {
    let (sending, receiving) = (world.connect().await.transport, world.connect().await.transport);
    let (_receiver, mut reads) = world.reader(&receiving).await;
    for codec in [Codec::MessagePack, Codec::Json] {
        let sender = StreamSender::builder(&sending).codec(codec).chunk_size(CHUNK as u32);
        let sender = sender.connect().await.unwrap();
        for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 40 * CHUNK, 40 * CHUNK + 7] {
            let body = payload(length, 1);
            let outgoing = Outgoing::reader(Cursor::new(body.clone()))
                .with_name("a name")
                .with_content_type("video/mp4")
                .with_metadata("author", "Ada")
                .with_metadata("année", "2026");
            let receipt = sender.send(&world.service, outgoing).await.unwrap();
            assert_eq!(receipt.length, length as u64);
            assert_eq!(receipt.hash, ContentHash::of(&body));
            let read = reads.recv().await.unwrap().unwrap();
            assert!(read.body == body);
            assert_eq!(read.name.as_deref(), Some("a name"));
            assert_eq!(read.content_type.as_deref(), Some("video/mp4"));
            let metadata = [("année", "2026"), ("author", "Ada")];
            let metadata = metadata.map(|(name, value)| (name.to_owned(), value.to_owned()));
            assert_eq!(read.metadata, metadata);
            assert_eq!(read.length, None);
        }
    }
}

/// The receiver of the one before may be just about to forget it.
pub(crate) async fn a_stream_that_is_sent_again_at_once_is_answered_each_time(world: World) {
    let (sending, receiving) = (world.connect().await.transport, world.connect().await.transport);
    let (_receiver, mut reads) = world.reader(&receiving).await;
    tokio::spawn(async move { while reads.recv().await.is_some() {} });
    let sender = world.sender(&sending).await;
    let (id, body) = (sending.env().new_id(), payload(3 * CHUNK, 1));
    for _ in 0..20 {
        let outgoing = Outgoing::seekable(Cursor::new(body.clone())).with_id(id);
        let before = sending.env().now();
        let receipt = soon(sender.send(&world.service, outgoing)).await.unwrap();
        assert_eq!(receipt.hash, ContentHash::of(&body));
        let took = sending.env().now() - before;
        assert!(took < Duration::from_secs(20), "it took {took:?}");
    }
}

pub(crate) async fn many_transfers_share_one_sender_and_the_receivers_of_a_service(world: World) {
    let sending = world.connect().await.transport;
    let sender = world.sender(&sending).await;
    let mut receivers = Vec::new();
    for _ in 0..3 {
        let transport = world.connect().await.transport;
        let (running, mut reads) = world.reader(&transport).await;
        let counted = tokio::spawn(async move {
            let mut bodies = Vec::new();
            while let Some(read) = reads.recv().await {
                bodies.push(ContentHash::of(&read.unwrap().body));
            }
            bodies
        });
        receivers.push((transport, running, counted));
    }
    let sent: Vec<_> = stream::iter(0..24)
        .map(|number| {
            let body = payload(20 * CHUNK + number, number as u64);
            let (sender, service) = (sender.clone(), world.service.clone());
            async move {
                let outgoing = Outgoing::seekable(Cursor::new(body));
                sender.send(&service, outgoing).await.unwrap().hash
            }
        })
        .buffer_unordered(24)
        .collect()
        .await;
    let mut received = Vec::new();
    for (_transport, running, counted) in receivers {
        running.stop(SOON).await;
        received.extend(counted.await.unwrap());
    }
    let sort = |mut hashes: Vec<ContentHash>| {
        hashes.sort_by_key(|hash| *hash.as_bytes());
        hashes
    };
    assert_eq!(sort(received), sort(sent));
}

pub(crate) async fn a_reader_that_waits_holds_its_sender_back(world: World) {
    let (sending, receiving) = (world.connect().await.transport, world.connect().await.transport);
    let (go, gone) = oneshot::channel::<()>();
    let gone = std::sync::Mutex::new(Some(gone));
    let (tell, mut told) = mpsc::channel(1);
    let receiver = StreamReceiver::new(world.service.clone())
        .window(4)
        .on(move |mut incoming: Incoming, _context| {
            let (gone, tell) = (gone.lock().unwrap().take(), tell.clone());
            async move {
                let mut first = vec![0; CHUNK];
                incoming.read_exact(&mut first).await?;
                // Longer than the idle timeout of either side.
                gone.unwrap().await?;
                let mut rest = Vec::new();
                incoming.read_to_end(&mut rest).await?;
                Ok(tell.send(first.len() + rest.len()).await?)
            }
        })
        .idle_timeout(Duration::from_secs(6))
        .start(&receiving)
        .await
        .unwrap();
    let sender = StreamSender::builder(&sending)
        .chunk_size(CHUNK as u32)
        .idle_timeout(Duration::from_secs(6));
    let sender = sender.connect().await.unwrap();
    let (source, gate) = gated(payload(100 * CHUNK, 2));
    gate.open_to(u64::MAX);
    let mut transfer = sender.start(&world.service, Outgoing::seekable(source)).unwrap();
    comes_to(&mut transfer.progress(), 4 * CHUNK as u64).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    // One in the reader's hand, one before it, a window, and one that is read but not granted.
    assert!(gate.read() <= 7 * CHUNK as u64, "{} bytes were read", gate.read());
    go.send(()).unwrap();
    assert_eq!(soon(transfer.finish()).await.unwrap().length, 100 * CHUNK as u64);
    assert_eq!(told.recv().await, Some(100 * CHUNK));
    receiver.stop(SOON).await;
}

pub(crate) async fn a_source_that_is_slow_is_waited_for(world: World) {
    let (sending, receiving) = (world.connect().await.transport, world.connect().await.transport);
    let receiver = StreamReceiver::new(world.service.clone())
        .on(|mut incoming: Incoming, _context| async move {
            tokio::io::copy(&mut incoming, &mut tokio::io::sink()).await?;
            Ok(())
        })
        .idle_timeout(Duration::from_secs(6))
        .start(&receiving)
        .await
        .unwrap();
    let sender = world.sender(&sending).await;
    let (source, gate) = gated(payload(4 * CHUNK, 3));
    gate.open_to(CHUNK as u64);
    let mut transfer = sender.start(&world.service, Outgoing::reader(source)).unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    gate.open_to(u64::MAX);
    soon(transfer.finish()).await.unwrap();
    receiver.stop(SOON).await;
}

pub(crate) async fn memory_for_one_is_used_by_one_after_the_other(world: World) {
    let (sending, receiving) = (world.connect().await.transport, world.connect().await.transport);
    let (receiver, mut reads) = world.reader(&receiving).await;
    let sender =
        StreamSender::builder(&sending).chunk_size(CHUNK as u32).window(4).memory(4 * CHUNK as u64);
    let sender = sender.connect().await.unwrap();
    let (first, gate) = gated(payload(10 * CHUNK, 1));
    let mut first = sender.start(&world.service, Outgoing::reader(first)).unwrap();
    gate.open_to(CHUNK as u64);
    comes_to(&mut first.progress(), CHUNK as u64).await;
    let (second, other) = gated(payload(10 * CHUNK, 2));
    other.open_to(u64::MAX);
    let mut second = sender.start(&world.service, Outgoing::reader(second)).unwrap();
    gate.open_to(9 * CHUNK as u64);
    comes_to(&mut first.progress(), 9 * CHUNK as u64).await;
    assert_eq!(other.read(), 0);
    gate.open_to(u64::MAX);
    soon(first.finish()).await.unwrap();
    soon(second.finish()).await.unwrap();
    for _ in 0..2 {
        assert_eq!(reads.recv().await.unwrap().unwrap().body.len(), 10 * CHUNK);
    }
    receiver.stop(SOON).await;
}

pub(crate) async fn nobody_there_is_told_and_so_is_nobody_free(world: World) {
    let (sending, receiving) = (world.connect().await.transport, world.connect().await.transport);
    let sender = StreamSender::builder(&sending).accept_timeout(Duration::from_secs(3));
    let sender = sender.connect().await.unwrap();
    let before = sending.env().now();
    let nobody = sender.send(&world.service, Outgoing::reader(Cursor::new("x"))).await;
    assert!(matches!(nobody, Err(StreamError::Unavailable { .. })), "{nobody:?}");
    assert!(before.elapsed() < Duration::from_secs(1));

    // The one place is taken by a stream whose handler does not read.
    let (tell, mut told) = mpsc::channel(1);
    let receiver = StreamReceiver::new(world.service.clone())
        .concurrency(1)
        .on(move |incoming: Incoming, _context| {
            let tell = tell.clone();
            async move {
                tell.send(()).await?;
                std::future::pending::<()>().await;
                drop(incoming);
                Ok(())
            }
        })
        .start(&receiving)
        .await
        .unwrap();
    let mut first = sender.start(&world.service, Outgoing::reader(Cursor::new("x"))).unwrap();
    told.recv().await.unwrap();
    let full = sender.send(&world.service, Outgoing::reader(Cursor::new("x"))).await;
    assert!(matches!(full, Err(StreamError::Unavailable { .. })), "{full:?}");
    // Another receiver has room.
    let (_other, mut reads) = world.reader(&world.connect().await.transport).await;
    let second = sender.send(&world.service, Outgoing::reader(Cursor::new("y"))).await;
    assert_eq!(second.unwrap().length, 1);
    assert_eq!(reads.recv().await.unwrap().unwrap().body, b"y");
    first.abort("enough");
    assert!(matches!(first.finish().await, Err(StreamError::Aborted { .. })));
    receiver.stop(Duration::ZERO).await;
}

pub(crate) async fn a_receiver_that_says_no_is_heard(world: World) {
    let (sending, receiving) = (world.connect().await.transport, world.connect().await.transport);
    let receiver = StreamReceiver::new(world.service.clone())
        .max_length(1_000_000)
        .on(|mut incoming: Incoming, _context| async move {
            match incoming.name() {
                Some("no") => Err(HandlerError::rejected("QUOTA", "your disk is full")),
                Some("half") => {
                    incoming.read_u8().await?;
                    Ok(())
                }
                Some("bug") => panic!("secret"),
                _ => Err(std::io::Error::other("password is hunter2").into()),
            }
        })
        .start(&receiving)
        .await
        .unwrap();
    let sender = world.sender(&sending).await;
    let send = async |name: &str, length: usize| {
        let outgoing = Outgoing::seekable(Cursor::new(payload(length, 1))).with_name(name);
        soon(sender.send(&world.service, outgoing)).await.unwrap_err()
    };
    let said = send("no", 100_000).await;
    assert_eq!((said.class(), said.code()), (ErrorClass::Rejected, "QUOTA"));
    assert!(said.to_string().contains("your disk is full"));
    let said = send("half", 900_000).await;
    assert_eq!((said.class(), said.code()), (ErrorClass::Cancelled, "NOT_READ"));
    for name in ["bug", "fault"] {
        let said = send(name, 10).await;
        assert_eq!(said.class(), ErrorClass::Internal);
        assert!(!said.to_string().contains("secret") && !said.to_string().contains("hunter2"));
    }
    let long = Outgoing::reader(Cursor::new("x")).with_length(1_000_001);
    let said = soon(sender.send(&world.service, long)).await.unwrap_err();
    assert_eq!(said.code(), "TOO_LARGE");
    receiver.stop(SOON).await;
}

pub(crate) async fn an_abort_reaches_the_reader(world: World) {
    let (sending, receiving) = (world.connect().await.transport, world.connect().await.transport);
    let (receiver, mut reads) = world.reader(&receiving).await;
    let sender = world.sender(&sending).await;
    for dropped in [false, true] {
        let (source, gate) = gated(payload(10 * CHUNK, 1));
        gate.open_to(5 * CHUNK as u64);
        let mut transfer = sender.start(&world.service, Outgoing::reader(source)).unwrap();
        comes_to(&mut transfer.progress(), 5 * CHUNK as u64).await;
        if dropped {
            drop(transfer);
        } else {
            transfer.abort("changed my mind");
            transfer.abort("twice");
            let error = transfer.finish().await.unwrap_err();
            assert!(
                matches!(error, StreamError::Aborted { reason } if reason == "changed my mind")
            );
        }
        let error = soon(reads.recv()).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted, "{error}");
    }
    receiver.stop(SOON).await;
}
