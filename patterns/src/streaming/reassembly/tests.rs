use proptest::prelude::*;

use super::*;
use crate::streaming::ContentHash;

const SIZE: u32 = 4;

fn bounds(window: u64) -> Bounds {
    Bounds { chunk_size: SIZE.into(), window, declared: None, max_length: 1_000_000 }
}

fn chunks(payload: &[u8]) -> Vec<Chunk> {
    let cut = payload.chunks(SIZE as usize).zip(0..);
    cut.map(|(body, seq)| Chunk::new(seq, SIZE, Bytes::copy_from_slice(body))).collect()
}

fn close(payload: &[u8]) -> Close {
    let length = payload.len() as u64;
    Close { chunks: length.div_ceil(SIZE.into()), length, hash: ContentHash::of(payload) }
}

fn broken(result: &Result<impl std::fmt::Debug, StreamError>) -> bool {
    matches!(result, Err(StreamError::BrokenProtocol(_)))
}

/// A stream of 11 bytes with its first chunk taken.
fn begun() -> (Reassembly, Vec<Chunk>) {
    let mut reassembly = Reassembly::new(bounds(4), 0);
    let all = chunks(b"abcdefghijk");
    assert_eq!(reassembly.accept(all[0].clone()).unwrap(), Accepted::New);
    assert_eq!(reassembly.take().unwrap(), "abcd");
    (reassembly, all)
}

#[test]
fn the_end_may_overtake_chunks() {
    let (mut reassembly, all) = begun();
    reassembly.close(close(b"abcdefghijk")).unwrap();
    assert!(reassembly.end().is_none());
    assert_eq!(reassembly.gaps(), [(1, 3)]);
    reassembly.accept(all[2].clone()).unwrap();
    assert_eq!(reassembly.gaps(), [(1, 2)]);
    assert!(!reassembly.has_next());
    reassembly.accept(all[1].clone()).unwrap();
    assert_eq!(reassembly.received(), 3);
    assert_eq!((reassembly.take(), reassembly.take()), (Some("efgh".into()), Some("ijk".into())));
    assert_eq!(reassembly.end(), Some(&close(b"abcdefghijk")));
}

#[test]
fn a_duplicate_is_passed_over_and_another_content_is_corrupt() {
    let (mut reassembly, all) = begun();
    reassembly.accept(all[1].clone()).unwrap();
    for (seq, body) in [(0, "abcX"), (1, "efgX")] {
        let again = all[seq].clone();
        assert_eq!(reassembly.accept(again).unwrap(), Accepted::Duplicate);
        let other = reassembly.accept(Chunk::new(seq as u64, SIZE, body.into()));
        assert!(matches!(other, Err(StreamError::Corrupt(_))));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let refused = |change: fn(&mut Chunk)| {
        let (mut reassembly, all) = begun();
        let mut chunk = all[1].clone();
        change(&mut chunk);
        reassembly.accept(chunk).unwrap_err()
    };
    let wrong: [fn(&mut Chunk); 6] = [
        |chunk| chunk.offset = 5,
        |chunk| *chunk = Chunk::new(1, SIZE, "".into()),
        |chunk| *chunk = Chunk { offset: 4, ..Chunk::new(1, SIZE, "abcde".into()) },
        |chunk| *chunk = Chunk::new(5, SIZE, "abcd".into()),
        |chunk| (chunk.seq, chunk.offset) = (u64::MAX, u64::MAX),
        |chunk| chunk.seq = u64::MAX / 4,
    ];
    for (index, change) in wrong.into_iter().enumerate() {
        let error = refused(change);
        assert!(matches!(error, StreamError::BrokenProtocol(_)), "{index}: {error}");
    }
    let cut = refused(|chunk| chunk.body = chunk.body.slice(..2));
    assert!(matches!(cut, StreamError::Corrupt(_)), "{cut}");
    let far = refused(|chunk| *chunk = Chunk::new(1_000_000, SIZE, "abcd".into()));
    assert!(matches!(far, StreamError::TooLarge { limit: 1_000_000 }), "{far}");
}

#[test]
fn a_short_chunk_is_the_last() {
    let (mut reassembly, all) = begun();
    reassembly.accept(all[2].clone()).unwrap();
    assert!(broken(&reassembly.accept(Chunk::new(3, SIZE, "l".into()))));
    let (mut reassembly, _) = begun();
    reassembly.accept(Chunk::new(2, SIZE, "ijkl".into())).unwrap();
    assert!(broken(&reassembly.accept(Chunk::new(1, SIZE, "e".into()))));
}

#[test]
fn an_end_that_does_not_fit_is_refused() {
    for (chunks, length) in [(3, 12), (3, 10), (2, 8), (4, 11), (2, 11), (0, 0)] {
        let (mut reassembly, all) = begun();
        reassembly.accept(all[2].clone()).unwrap();
        let wrong = Close { chunks, length, ..close(b"abcdefghijk") };
        assert!(broken(&reassembly.close(wrong)), "{chunks} chunks, {length} bytes");
    }
    // A full chunk that is said to be shorter, held or taken.
    let mut reassembly = Reassembly::new(bounds(4), 0);
    reassembly.accept(Chunk::new(0, SIZE, "abcd".into())).unwrap();
    assert!(broken(&reassembly.close(close(b"abc"))));
    reassembly.take();
    assert!(broken(&reassembly.close(close(b"abc"))));
    reassembly.close(close(b"abcd")).unwrap();
    reassembly.close(close(b"abcd")).unwrap();
    assert!(broken(&reassembly.close(close(b"abcX"))));
    // Two ends in one.
    assert!(broken(&reassembly.accept(Chunk::new(1, SIZE, "e".into()))));
}

#[test]
fn a_declared_length_holds_and_so_does_the_most_that_is_taken() {
    let declared = Bounds { declared: Some(6), ..bounds(4) };
    let mut reassembly = Reassembly::new(declared, 0);
    assert!(broken(&reassembly.accept(Chunk::new(1, SIZE, "efg".into()))));
    assert!(broken(&reassembly.close(close(b"abcde"))));
    reassembly.close(close(b"abcdef")).unwrap();

    let limited = Bounds { max_length: 6, ..bounds(4) };
    let mut reassembly = Reassembly::new(limited, 0);
    let long = reassembly.accept(Chunk::new(1, SIZE, "efg".into()));
    assert!(matches!(long, Err(StreamError::TooLarge { limit: 6 })));
    let long = reassembly.close(close(b"abcdefg"));
    assert!(matches!(long, Err(StreamError::TooLarge { limit: 6 })));
}

#[test]
fn a_lost_tail_is_a_gap_once_it_is_known_to_have_been_sent() {
    let (mut reassembly, _) = begun();
    assert_eq!(reassembly.gaps(), []);
    assert_eq!(reassembly.lost(), [(1, 5)]);
    reassembly.note_sent(3);
    assert_eq!(reassembly.gaps(), [(1, 3)]);
    // Nobody makes a receiver ask for what it has not allowed.
    reassembly.note_sent(u64::MAX);
    assert_eq!(reassembly.gaps(), [(1, 5)]);
}

/// What may happen to a frame on its way.
#[derive(Debug, Clone)]
enum Fate {
    Arrives,
    Lost,
    Twice,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![3 => Just(Fate::Arrives), 1 => Just(Fate::Lost), 1 => Just(Fate::Twice)]
}

proptest! {
    /// Whatever is lost, doubled or out of order: with what is missing sent again as it is asked
    /// for, the payload comes out whole, once and in order, and no more is held than the window.
    #[test]
    fn any_order_gives_the_payload(
        payload in prop::collection::vec(any::<u8>(), 0..200),
        window in 1_u64..9,
        fates in prop::collection::vec((fate(), any::<u16>(), any::<bool>()), 0..400),
    ) {
        let (all, end) = (chunks(&payload), close(&payload));
        let mut reassembly = Reassembly::new(bounds(window), 0);
        let (mut out, mut sent, mut fates) = (Vec::new(), 0, fates.into_iter());
        let mut under_way: Vec<Option<u64>> = vec![None];
        let mut rounds = 0;
        while reassembly.end().is_none() {
            while sent < end.chunks && sent < reassembly.until() {
                under_way.push(Some(sent));
                sent += 1;
            }
            if under_way.is_empty() {
                rounds += 1;
                prop_assert!(rounds < 1_000, "it comes to no end");
                reassembly.note_sent(sent);
                let gaps = reassembly.gaps();
                under_way.extend(gaps.into_iter().flat_map(|(from, to)| from..to).map(Some));
                under_way.push(None);
            }
            let (fate, pick, reads) = fates.next().unwrap_or((Fate::Arrives, 0, true));
            let frame = under_way.swap_remove(usize::from(pick) % under_way.len());
            let times = match fate { Fate::Arrives => 1, Fate::Lost => 0, Fate::Twice => 2 };
            for _ in 0..times {
                match frame {
                    Some(seq) => drop(reassembly.accept(all[seq as usize].clone()).unwrap()),
                    None => reassembly.close(end).unwrap(),
                }
            }
            prop_assert!(reassembly.held.len() as u64 <= window);
            while reads && let Some(body) = reassembly.take() {
                out.extend_from_slice(&body);
            }
            if !reads && under_way.is_empty() {
                out.extend(reassembly.take().unwrap_or_default());
            }
        }
        prop_assert_eq!(out, payload);
        prop_assert_eq!(reassembly.gaps(), []);
        prop_assert_eq!(reassembly.lost(), []);
    }

    /// Frames that anybody makes up end in an error or fit; none makes it hold more than its window
    /// or panic, and what it says of itself stays consistent.
    #[test]
    fn made_up_frames_are_refused_or_fit(
        frames in prop::collection::vec(
            (0_u64..12, -1_i64..2, 0_usize..6, any::<bool>(), 0_u64..40, 0_u64..60), 0..60,
        ),
        declared in prop::option::of(0_u64..40),
        window in 1_u64..6,
    ) {
        let bounds = Bounds { declared, max_length: 40, ..bounds(window) };
        let mut reassembly = Reassembly::new(bounds, 0);
        let mut out = 0;
        for (seq, shift, size, damaged, count, length) in frames {
            let mut chunk = Chunk::new(seq, SIZE, vec![seq as u8; size].into());
            chunk.offset = chunk.offset.wrapping_add_signed(shift);
            chunk.checksum ^= u32::from(damaged);
            let fits = shift == 0 && !damaged && (1..=4).contains(&size);
            let taken_in = reassembly.accept(chunk);
            prop_assert!(fits || taken_in.is_err());
            if length % 5 == 0 {
                let end = Close { chunks: count, length, hash: ContentHash::of(b"") };
                let closed = reassembly.close(end);
                prop_assert!(closed.is_err() || length.div_ceil(4) == count);
            }
            reassembly.note_sent(count);
            prop_assert!(reassembly.held.len() as u64 <= window);
            for (from, to) in reassembly.gaps().into_iter().chain(reassembly.lost()) {
                prop_assert!(from < to && to <= reassembly.until());
            }
            if count % 2 == 0 {
                out += reassembly.take().map_or(0, |body| body.len() as u64);
            }
            prop_assert!(out <= declared.unwrap_or(40).min(40));
            if let Some(end) = reassembly.end() {
                prop_assert_eq!(end.length, out);
            }
        }
    }
}
