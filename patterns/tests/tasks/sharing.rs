//! Who does which task, and in which order.

use std::sync::{Arc, Mutex};

use futures_util::future::try_join_all;
use postrider_patterns::SubmitOptions;
use tokio::sync::Barrier;

use super::world::{Job, World, comes_to, soon, submit};

pub(crate) async fn workers_share_the_tasks_of_a_queue(world: World) {
    const NUMBER: u32 = 40;
    let (one, other) = (world.transport().await, world.transport().await);
    // None of the first two ends before both workers have one.
    let both = Arc::new(Barrier::new(2));
    let start = |transport| {
        let both = Arc::clone(&both);
        let worker = world.worker().on_result(move |job: Job, _context| {
            let both = Arc::clone(&both);
            async move {
                if job.number < 2 {
                    both.wait().await;
                }
                Ok(job.number + 100)
            }
        });
        async move { worker.start(transport).await.unwrap() }
    };
    let (first, second) = (start(&one).await, start(&other).await);
    let tasks = world.tasks(&one).await;
    let mut handles = Vec::new();
    for number in 0..NUMBER {
        handles.push(submit(&tasks, number).await);
    }
    let results = soon(try_join_all(handles.iter().map(|handle| handle.result()))).await.unwrap();
    assert_eq!(results, (100..100 + NUMBER).collect::<Vec<_>>());
    comes_to(&first, |stats| stats.acked + second.stats().acked == u64::from(NUMBER)).await;
    assert!(first.stats().acked > 0 && second.stats().acked > 0);
}

pub(crate) async fn the_higher_priority_goes_first(world: World) {
    let transport = world.transport().await;
    let tasks = world.tasks(&transport).await;
    let mut handles = Vec::new();
    for (number, priority) in [(3, 1), (1, 9), (4, 1), (2, 5)] {
        let options = SubmitOptions::default().with_priority(priority);
        handles.push(tasks.submit_for_result(&Job { number }, options).await.unwrap());
    }
    let order = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&order);
    let worker = world.worker().on_result(move |job: Job, _context| {
        seen.lock().unwrap().push(job.number);
        async move { Ok(job.number) }
    });
    let _running = worker.start(&transport).await.unwrap();
    soon(try_join_all(handles.iter().map(|handle| handle.result()))).await.unwrap();
    let order = order.lock().unwrap().clone();
    // With two levels the higher one has its turn more often, not always.
    if transport.capabilities().priority_levels > 2 {
        assert_eq!(order, [1, 2, 3, 4]);
    } else {
        assert_eq!(order.len(), 4);
    }
}

/// Where there are two levels only, the higher one has its turn twice as often.
pub(crate) async fn many_of_a_higher_priority_are_done_earlier(world: World) {
    const EACH: u32 = 40;
    let transport = world.transport().await;
    let tasks = world.tasks(&transport).await;
    for (first, priority) in [(0, 0), (EACH, 9)] {
        for number in first..first + EACH {
            let options = SubmitOptions::default().with_priority(priority);
            tasks.submit_with(&Job { number }, options).await.unwrap();
        }
    }
    let order = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&order);
    let worker = world.worker().on_result(move |job: Job, _context| {
        seen.lock().unwrap().push(job.number);
        async move { Ok(job.number) }
    });
    let running = worker.start(&transport).await.unwrap();
    comes_to(&running, |stats| stats.acked == u64::from(2 * EACH)).await;
    let order = order.lock().unwrap().clone();
    let places = |is_high: bool| {
        let of_level = order.iter().zip(0_u32..).filter(|(job, _)| (**job >= EACH) == is_high);
        of_level.map(|(_, place)| place).sum::<u32>()
    };
    assert!(places(true) + EACH * EACH / 4 < places(false), "{order:?}");

    let highest = transport.capabilities().priority_levels.max(10) - 1;
    let too_high = SubmitOptions::default().with_priority(highest + 1);
    let refused = tasks.submit_with(&Job { number: 0 }, too_high).await.unwrap_err();
    assert!(refused.to_string().contains(&format!("{highest} here")), "{refused}");
    let highest = SubmitOptions::default().with_priority(highest);
    tasks.submit_with(&Job { number: 1_000 }, highest).await.unwrap();
    comes_to(&running, |stats| stats.acked == u64::from(2 * EACH + 1)).await;
}
