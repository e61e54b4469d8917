//! Many instances.

use futures_util::future::join_all;
use postrider_core::Message;
use tokio::time::timeout;

use super::world::{SOON, World, discount, eventually, in_force};

const MANY: usize = 1_000;

pub(crate) async fn a_thousand_start_and_change_at_once(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let publisher = world.publisher(&one).await;
    publisher.publish(&discount(10)).await.unwrap();
    let starting = (0..MANY).map(|number| {
        let (world, other) = (&world, &other);
        async move { world.reader(other, &format!("i-{number}")).await }
    });
    let configs = join_all(starting).await;
    assert!(configs.iter().all(|config| in_force(config) == Some((1, 10))));
    publisher.publish(&discount(20)).await.unwrap();
    let mut reports = publisher.reports();
    let all = reports.wait_for(|reports| {
        reports.values().filter(|report| report.version == Some(2)).count() == MANY
    });
    timeout(SOON, all).await.expect("all report").expect("the publisher goes on");
    assert!(configs.iter().all(|config| in_force(config) == Some((2, 20))));
    assert_eq!(publisher.ask().await.unwrap().len(), MANY);
    assert_eq!(publisher.refused_reports(), 0);
}

pub(crate) async fn what_a_publisher_remembers_is_bounded(world: &World) {
    const KNOWN: usize = 4_096;
    let (one, other) = (world.transport().await, world.transport().await);
    let publisher = world.publisher(&one).await;
    for number in 0..KNOWN + 100 {
        let body = format!(r#"{{"instance":"i-{number}","version":1}}"#);
        let report = Message::new(body).with_type("config.report");
        world.say(&*other, "report.orders.pricing", report).await;
    }
    eventually("all are heard", async || publisher.refused_reports() == 100).await;
    assert_eq!(publisher.reports().borrow().len(), KNOWN);
}
