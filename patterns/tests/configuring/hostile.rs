//! What others publish that makes no sense or is late.

use postrider_core::{Address, Message};

use super::world::{World, comes_to, discount, eventually, in_force, send, value};

pub(crate) async fn nonsense_is_counted_and_left(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let publisher = world.publisher(&one).await;
    let config = world.reader(&other, "i").await;
    publisher.publish(&discount(10)).await.unwrap();
    comes_to(&config, 1, 10).await;
    let nonsense = [
        Message::new("x"),
        Message::new("{}").with_type("config.value"),
        value(0, "{}"),
        value(-4, "{}"),
        value(i64::MAX, r#"{"discount":1}"#),
        value(2, "{}").with_header("postrider-config-version", "two"),
    ];
    let count = nonsense.len() as u64;
    for message in nonsense {
        world.say(&*one, "value.orders.pricing", message).await;
    }
    eventually("all are counted", async || config.stats().invalid == count).await;
    assert_eq!(in_force(&config), Some((1, 10)));

    let report = |body: &str| {
        let body = body.to_owned();
        Message::new(body).with_type("config.report").with_content_type("application/json")
    };
    let huge = format!(
        r#"{{"instance":"i","rejected":{{"version":1,"reason":"{}"}}}}"#,
        "x".repeat(20_000)
    );
    let nonsense = [
        Message::new("x"),
        report("{"),
        report(r#"{"version":1}"#),
        report(r#"{"instance":""}"#),
        report(r#"{"instance":"i","version":18446744073709551615}"#),
        report(r#"{"instance":"i","version":-1}"#),
        report(&huge),
    ];
    let count = nonsense.len() as u64;
    for message in nonsense {
        world.say(&*other, "report.orders.pricing", message).await;
    }
    eventually("all are counted", async || publisher.refused_reports() == count).await;
}

pub(crate) async fn nonsense_in_the_keeper_is_replaced(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let publisher = world.publisher(&one).await;
    let config = world.reader(&other, "i").await;
    publisher.publish(&discount(10)).await.unwrap();
    publisher.publish(&discount(20)).await.unwrap();
    comes_to(&config, 2, 20).await;
    send(&*other, Address::queue(world.keeper()), Message::new("rubbish")).await;
    // Those who are there remember what came last.
    let newcomer = world.publisher(&other).await;
    assert!(newcomer.current().await.unwrap().is_none());
    assert_eq!(newcomer.publish(&discount(30)).await.unwrap(), 3);
    comes_to(&config, 3, 30).await;
    assert_eq!(newcomer.current().await.unwrap().unwrap().version, 3);
}

pub(crate) async fn an_old_value_changes_nothing(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let config = world.reader(&other, "i").await;
    let body = |percent: u32| format!(r#"{{"discount":{percent}}}"#);
    for (version, percent) in [(3, 30), (2, 20), (3, 31), (1, 10)] {
        // To the instances alone, as what was under way for long would come.
        world.say(&*one, "value.orders.pricing", value(version, &body(percent))).await;
    }
    // The third has the id of the first, so it is taken for the same.
    eventually("two are old", async || config.stats().stale == 2).await;
    assert_eq!(in_force(&config), Some((3, 30)));
    assert_eq!(config.stats().applied, 1);
}
