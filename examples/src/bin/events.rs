//! Events: publish once, and everybody who is interested hears of it.
//!
//! `cargo run -p postrider-examples --bin events`

use std::{error::Error, time::Duration};

use clap::Parser;
use postrider::{Event, EventBus, RawEvent, Subscription};
use postrider_examples::BrokerArgs;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Serialize, Deserialize)]
struct UserRegistered {
    name: String,
}

impl Event for UserRegistered {
    const TYPE: &'static str = "user.registered";
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Args { broker } = Args::parse();
    let transport = broker.connect().await?;
    let bus = EventBus::new(&transport).await?;
    // Only for this program: it ends when both handlers have told what they heard.
    let (tell, mut told) = mpsc::channel(8);

    // Durable: the events wait in a queue of the broker while no mailer runs, and if several run,
    // each event goes to one of them.
    let mailer_tell = tell.clone();
    let mailer = Subscription::durable("mailer", "welcome").on(move |event: UserRegistered, _| {
        let tell = mailer_tell.clone();
        async move { Ok(tell.send(format!("mailer: welcome, {}!", event.name)).await?) }
    });
    let mailer = bus.subscribe(mailer).await?;

    // Ephemeral: this one hears what happens while it listens, here everything about users. It
    // does not know the types of the events.
    let audit = Subscription::ephemeral("audit").on_pattern("user.#", move |event: RawEvent, _| {
        let tell = tell.clone();
        async move { Ok(tell.send(format!("audit: {} was heard", event.event_type())).await?) }
    });
    let audit = bus.subscribe(audit).await?;

    let id = bus.publish(&UserRegistered { name: "Ada".into() }).await?;
    println!("published event {id}");
    for _ in 0..2 {
        println!("{}", told.recv().await.ok_or("the subscriptions ended")?);
    }

    mailer.stop(Duration::from_secs(5)).await;
    audit.stop(Duration::from_secs(5)).await;
    transport.close(Duration::from_secs(5)).await?;
    Ok(())
}
