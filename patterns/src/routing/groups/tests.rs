use std::time::Duration;

use postrider_core::{Address, DeliveryInfo, Env, Envelope, Message};

use super::*;
use crate::codec::Limits;

fn part(size: usize) -> Arc<Inbound> {
    let envelope = Envelope::new(Address::queue("q"), Message::new(vec![0; size]));
    let info = DeliveryInfo::first("q".into());
    Arc::new(Inbound::new(&Arc::new(envelope), &info, Limits::default()))
}

fn groups(groups: usize, parts: usize, bytes: usize) -> Arc<Groups> {
    Groups::new(Bounds { groups, parts, bytes })
}

fn after(seconds: u64) -> Instant {
    Env::simulated(7).deadline(Duration::from_secs(seconds))
}

fn take(groups: &Groups, key: &str, size: usize, id: &str) -> Taken {
    groups.take(key, &part(size), Some(id), after(0))
}

#[tokio::test(start_paused = true)]
async fn the_oldest_group_makes_room() {
    for (groups, size) in [(groups(1, 9, 99), 1), (groups(9, 1, 99), 1), (groups(9, 9, 10), 10)] {
        let Taken::First(_waiting, term) = take(&groups, "a", size, "1") else {
            panic!("the first part of a group")
        };
        assert!(matches!(take(&groups, "b", size, "2"), Taken::NotYet));
        let told = std::pin::pin!(term.full.notified());
        assert!(futures_util::FutureExt::now_or_never(told).is_some());
        groups.close_if("a", |_| true).unwrap().end(&Outcome::Back);
        assert!(matches!(take(&groups, "b", size, "2"), Taken::First(..)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_part_that_is_larger_than_all_room_is_taken_alone() {
    let groups = groups(9, 9, 10);
    assert!(matches!(take(&groups, "a", 11, "1"), Taken::First(..)));
    assert!(matches!(take(&groups, "a", 1, "2"), Taken::NotYet));
}

#[tokio::test(start_paused = true)]
async fn a_part_that_comes_again_takes_the_place_of_the_other_and_no_room() {
    let groups = groups(9, 2, 10);
    let end = after(9);
    let first = groups.take("a", &part(5), Some("1"), end);
    let Taken::First(mut first, _) = first else { panic!("{first:?}") };
    let mut latest = None;
    for _ in 0..9 {
        let again = groups.take("a", &part(5), Some("1"), after(99));
        let Taken::Again(mut waiting, Some(term)) = again else { panic!("{again:?}") };
        // Copies do not keep a group alive.
        assert_eq!(term.end, end);
        assert!(waiting.try_recv().is_err());
        let before = latest.replace(waiting);
        if let Some(mut before) = before {
            assert!(matches!(before.try_recv(), Ok(Outcome::Done)));
        }
    }
    assert!(matches!(first.try_recv(), Ok(Outcome::Done)));
    assert!(matches!(take(&groups, "a", 5, "2"), Taken::Next(_)));
    let again = take(&groups, "a", 5, "2");
    assert!(matches!(again, Taken::Again(_, None)), "{again:?}");
    // One that is larger has to find room; one that is smaller leaves some.
    assert!(matches!(take(&groups, "a", 6, "2"), Taken::NotYet));
    assert!(matches!(take(&groups, "a", 1, "2"), Taken::Again(_, None)));
    assert!(matches!(take(&groups, "a", 9, "1"), Taken::Again(_, Some(_))));
    groups.close_if("a", |parts| parts.len() == 2).unwrap().end(&Outcome::Back);
    assert!(matches!(latest.unwrap().try_recv(), Ok(Outcome::Done)));
    assert!(matches!(take(&groups, "b", 10, "1"), Taken::First(..)));
}

#[tokio::test(start_paused = true)]
async fn parts_that_come_again_while_their_group_ends_share_its_end_and_then_are_past() {
    let groups = groups(9, 9, 99);
    let Taken::First(mut first, _) = take(&groups, "a", 1, "1") else { panic!() };
    let ending = groups.close_if("a", |parts| parts.len() == 1).unwrap();
    assert!(groups.close_if("a", |_| true).is_none());
    let Taken::Again(mut late, _) = take(&groups, "a", 1, "1") else { panic!() };
    assert!(matches!(take(&groups, "a", 1, "2"), Taken::NotYet));
    assert!(matches!(first.try_recv(), Ok(Outcome::Done)));
    assert!(late.try_recv().is_err());
    ending.end(&Outcome::Done);
    assert!(matches!(late.try_recv(), Ok(Outcome::Done)));
    assert!(matches!(take(&groups, "a", 1, "1"), Taken::Past));
    assert!(matches!(take(&groups, "a", 1, "2"), Taken::First(..)));
}

#[tokio::test(start_paused = true)]
async fn what_is_given_back_is_neither_held_nor_past() {
    let groups = groups(9, 9, 99);
    let Taken::First(mut open, _) = take(&groups, "a", 1, "1") else { panic!() };
    let Taken::First(mut ending, _) = take(&groups, "b", 1, "1") else { panic!() };
    let held = groups.close_if("b", |_| true).unwrap();
    groups.give_back();
    assert!(matches!(open.try_recv(), Ok(Outcome::Back)));
    assert!(ending.try_recv().is_err());
    held.end(&Outcome::Done);
    assert!(matches!(take(&groups, "a", 1, "1"), Taken::First(..)));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_taken_after_the_end() {
    let groups = groups(9, 9, 99);
    let Taken::First(mut open, _) = take(&groups, "a", 1, "1") else { panic!() };
    groups.close();
    assert!(matches!(open.try_recv(), Ok(Outcome::Back)));
    assert!(matches!(take(&groups, "a", 1, "1"), Taken::Over));
}

#[tokio::test(start_paused = true)]
async fn an_end_that_is_given_up_frees_the_room() {
    let groups = groups(1, 1, 9);
    let Taken::First(mut waiting, _) = take(&groups, "a", 1, "1") else { panic!() };
    drop(groups.close_if("a", |_| true).unwrap());
    assert!(waiting.try_recv().is_err());
    assert!(matches!(take(&groups, "b", 1, "1"), Taken::First(..)));
}
