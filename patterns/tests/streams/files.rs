//! Streams that become files.

use std::{
    fs::File,
    io::Cursor,
    time::{Duration, SystemTime},
};

use postrider_core::ErrorKind;
use postrider_patterns::{ContentHash, Outgoing, StreamError, StreamReceiver};
use postrider_testkit::harness::Fault;

use super::world::{SOON, World, comes_to, gated, payload, soon};

/// Larger than what is written between two notes of how far a file is.
const LARGE: usize = 2 * HALF as usize + 5;

const HALF: u64 = 12 * 1024 * 1024;

pub(crate) async fn a_file_arrives_whole_and_alone(world: World) {
    let (sending, receiving) = (world.connect().await.transport, world.connect().await.transport);
    let (receiver, _saves) = world.saver(&receiving).await;
    let sender = world.sender(&sending).await;
    let source = world.directory().join("source");
    for length in [0, 1_000_000] {
        let body = payload(length, 1);
        std::fs::write(&source, &body).unwrap();
        let outgoing = Outgoing::file(&source).await.unwrap();
        let receipt = sender.send(&world.service, outgoing).await.unwrap();
        assert_eq!(receipt.hash, ContentHash::of(&body));
        // It took the place of the one before.
        assert!(std::fs::read(world.target()).unwrap() == body);
        assert_eq!(world.files(), ["film.mp4", "source"]);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(world.target()).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }
    let missing = Outgoing::file(world.directory().join("missing")).await;
    assert!(matches!(missing, Err(StreamError::Io { .. })));
    receiver.stop(SOON).await;
}

pub(crate) async fn a_receiver_begins_by_sweeping_what_nobody_came_back_to(world: World) {
    let transport = world.connect().await.transport;
    let hour = Duration::from_secs(3_600);
    let now = SystemTime::from(transport.env().timestamp());
    let id = transport.env().new_id();
    for (name, age) in [("old", 2 * hour), ("young", hour / 2)] {
        let part = world.directory().join(format!("{name}.mp4.{id}.part"));
        File::create(part).unwrap().set_modified(now - age).unwrap();
    }
    let receiver = StreamReceiver::new(world.service.clone())
        .on(|_incoming, _context| async { Ok(()) })
        .sweep(world.directory(), hour)
        .start(&transport)
        .await
        .unwrap();
    assert_eq!(world.files(), [format!("young.mp4.{id}.part")]);
    receiver.stop(SOON).await;
    let missing = StreamReceiver::new(world.service.clone())
        .on(|_incoming, _context| async { Ok(()) })
        .sweep(world.directory().join("missing"), hour)
        .start(&transport)
        .await;
    assert_eq!(missing.unwrap_err().kind(), ErrorKind::Invalid);
}

pub(crate) async fn an_abort_leaves_no_file(world: World) {
    let (sending, receiving) = (world.connect().await.transport, world.connect().await.transport);
    let (receiver, mut saves) = world.saver(&receiving).await;
    let sender = world.sender(&sending).await;
    let (source, gate) = gated(payload(LARGE, 1));
    gate.open_to(HALF);
    let transfer = sender.start(&world.service, Outgoing::seekable(source)).unwrap();
    let mut progress = soon(saves.recv()).await.unwrap();
    comes_to(&mut progress, HALF).await;
    assert_eq!(world.files().len(), 2, "a part and its note: {:?}", world.files());
    transfer.abort("no");
    // The handler's side of the progress goes with its session.
    while soon(progress.changed()).await.is_ok() {}
    let report = receiver.stop(SOON).await;
    assert_eq!(report.still_running, 0);
    assert!(world.files().is_empty(), "{:?}", world.files());
}

pub(crate) async fn a_receiver_that_was_restarted_goes_on_with_its_file(world: World) {
    resume(world, |_part| {}, true).await;
}

pub(crate) async fn a_file_that_was_changed_meanwhile_is_begun_anew(world: World) {
    resume(
        world,
        |part| {
            let mut bytes = std::fs::read(part).unwrap();
            bytes[1_000] ^= 1;
            std::fs::write(part, bytes).unwrap();
        },
        false,
    )
    .await;
}

async fn resume(world: World, meanwhile: fn(&std::path::Path), goes_on: bool) {
    let (sending, first) = (world.connect().await.transport, world.connect().await.transport);
    let (receiver, mut saves) = world.saver(&first).await;
    let sender = world.sender(&sending).await;
    let body = payload(LARGE, 2);
    let (source, gate) = gated(body.clone());
    gate.open_to(HALF);
    let mut transfer = sender.start(&world.service, Outgoing::seekable(source)).unwrap();
    let mut progress = soon(saves.recv()).await.unwrap();
    comes_to(&mut progress, HALF).await;
    assert_eq!(receiver.stop(Duration::ZERO).await.released, 1);
    let id = transfer.id();
    let names = [format!("film.mp4.{id}.part"), format!("film.mp4.{id}.part-state")];
    assert_eq!(world.files(), names);
    meanwhile(&world.directory().join(&names[0]));

    let second = world.connect().await.transport;
    let (receiver, mut saves) = world.saver(&second).await;
    let mut progress = soon(saves.recv()).await.unwrap();
    // Nothing more can come yet than what was there.
    let begun = soon(progress.wait_for(|progress| progress.bytes > 0)).await.unwrap();
    assert_eq!(begun.resumed == 1, goes_on);
    assert!(!goes_on || begun.bytes >= 8 * 1024 * 1024, "{begun:?}");
    drop(begun);
    gate.open_to(u64::MAX);
    assert_eq!(soon(transfer.finish()).await.unwrap().hash, ContentHash::of(&body));
    assert!(std::fs::read(world.target()).unwrap() == body);
    receiver.stop(SOON).await;
    assert_eq!(world.files(), ["film.mp4"]);
}

/// Its session waits for the broker and cannot say goodbye.
#[allow(dead_code)] // One broker alone has this.
pub(crate) async fn a_receiver_that_stops_under_an_alarm_keeps_its_file(world: World) {
    let (sending, receiving) = (world.connect().await.transport, world.connect().await.transport);
    let (receiver, mut saves) = world.saver(&receiving).await;
    let sender = world.sender(&sending).await;
    let body = payload(LARGE, 2);
    let (source, gate) = gated(body.clone());
    gate.open_to(HALF);
    let mut transfer = sender.start(&world.service, Outgoing::seekable(source)).unwrap();
    let mut progress = soon(saves.recv()).await.unwrap();
    comes_to(&mut progress, HALF).await;
    world.broker.begin(Fault::Alarm).await.unwrap();
    // Signs of life are due every two seconds.
    tokio::time::sleep(Duration::from_secs(3)).await;
    receiver.stop(Duration::ZERO).await;
    assert_eq!(world.files().len(), 2, "a part and its note: {:?}", world.files());

    world.broker.end(Fault::Alarm).await.unwrap();
    gate.open_to(u64::MAX);
    let (receiver, _saves) = world.saver(&world.connect().await.transport).await;
    assert_eq!(soon(transfer.finish()).await.unwrap().hash, ContentHash::of(&body));
    receiver.stop(SOON).await;
    assert_eq!(world.files(), ["film.mp4"]);
}

pub(crate) async fn two_transfers_of_one_stream_do_not_share_a_file(world: World) {
    let (sending, receiving) = (world.connect().await.transport, world.connect().await.transport);
    let (receiver, mut saves) = world.saver(&receiving).await;
    let sender = world.sender(&sending).await;
    let body = payload(1_000_000, 2);
    let (source, gate) = gated(body.clone());
    gate.open_to(500_000);
    let mut first = sender.start(&world.service, Outgoing::seekable(source)).unwrap();
    let mut progress = soon(saves.recv()).await.unwrap();
    comes_to(&mut progress, 400_000).await;
    let again = Outgoing::seekable(Cursor::new(body.clone())).with_id(first.id());
    let again = sender.start(&world.service, again);
    assert!(matches!(again, Err(StreamError::Busy(_))));
    gate.open_to(u64::MAX);
    soon(first.finish()).await.unwrap();
    // Another stream takes the place of the file.
    let other = Outgoing::seekable(Cursor::new(body.slice(..10)));
    soon(sender.send(&world.service, other)).await.unwrap();
    assert!(std::fs::read(world.target()).unwrap() == body[..10]);
    receiver.stop(SOON).await;
    assert_eq!(world.files(), ["film.mp4"]);
}

pub(crate) async fn a_path_that_cannot_be_written_is_the_receiver_s_fault(world: World) {
    let (sending, receiving) = (world.connect().await.transport, world.connect().await.transport);
    let target = world.directory().join("missing").join("film.mp4");
    let receiver = StreamReceiver::new(world.service.clone())
        .on(move |incoming: postrider_patterns::Incoming, _context| {
            let target = target.clone();
            async move {
                let saved = incoming.save_to(target).await;
                assert!(matches!(&saved, Err(StreamError::Io { .. })));
                saved?;
                Ok(())
            }
        })
        .start(&receiving)
        .await
        .unwrap();
    let sender = world.sender(&sending).await;
    let sent = sender.send(&world.service, Outgoing::seekable(Cursor::new("x"))).await;
    assert_eq!(sent.unwrap_err().code(), "INTERNAL");
    receiver.stop(SOON).await;

    // A directory is in its place: that is known before anything is sent.
    std::fs::create_dir(world.target()).unwrap();
    let (receiver, _saves) = world.saver(&receiving).await;
    let (source, _never) = gated(payload(10 * super::world::CHUNK, 1));
    let sent = soon(sender.send(&world.service, Outgoing::seekable(source))).await;
    assert_eq!(sent.unwrap_err().code(), "INTERNAL");
    receiver.stop(SOON).await;
    assert_eq!(world.files(), ["film.mp4"]);
}

/// The name of a part is longer by 42 bytes, and that of the note beside it by 48.
pub(crate) async fn a_name_is_as_long_as_its_part_may_be(world: World) {
    let (sending, receiving) = (world.connect().await.transport, world.connect().await.transport);
    let directory = world.directory().to_owned();
    let receiver = StreamReceiver::new(world.service.clone())
        .on(move |incoming: postrider_patterns::Incoming, _context| {
            let target = directory.join(incoming.name().unwrap_or_default());
            async move {
                incoming.save_to(target).await?;
                Ok(())
            }
        })
        .start(&receiving)
        .await
        .unwrap();
    let sender = world.sender(&sending).await;
    let body = payload(LARGE, 3);
    let named =
        |length| Outgoing::seekable(Cursor::new(body.clone())).with_name("n".repeat(length));
    for too_long in [214, 255] {
        let sent = soon(sender.send(&world.service, named(too_long))).await;
        assert_eq!(sent.unwrap_err().code(), "INTERNAL");
        assert!(world.files().is_empty(), "{:?}", world.files());
    }
    // It is noted nowhere how far this one is, and it is there all the same.
    for name in [213, 207] {
        let receipt = soon(sender.send(&world.service, named(name))).await.unwrap();
        assert_eq!(receipt.hash, ContentHash::of(&body));
    }
    assert_eq!(world.files(), ["n".repeat(207), "n".repeat(213)]);
    receiver.stop(SOON).await;
}

pub(crate) async fn a_pipe_is_not_replaced_by_a_file(world: World) {
    let (sending, receiving) = (world.connect().await.transport, world.connect().await.transport);
    let made = std::process::Command::new("mkfifo").arg(world.target()).status().unwrap();
    assert!(made.success());
    let (receiver, _saves) = world.saver(&receiving).await;
    let sender = world.sender(&sending).await;
    let sent = soon(sender.send(&world.service, Outgoing::seekable(Cursor::new("x")))).await;
    assert_eq!(sent.unwrap_err().code(), "INTERNAL");
    receiver.stop(SOON).await;
    assert!(!std::fs::metadata(world.target()).unwrap().is_file());
    assert_eq!(world.files(), ["film.mp4"]);
}
