//! Calls that are not awaited at once: several under way, one cancelled, one that streams its reply.
//!
//! `cargo run -p postrider-examples --bin async_calls`

use std::{collections::BTreeMap, error::Error, time::Duration};

use clap::Parser;
use futures_util::{StreamExt, stream};
use postrider::{CallOptions, Context, HandlerError, Request, RpcClient, RpcServer, StreamOptions};
use postrider_examples::BrokerArgs;
use serde::{Deserialize, Serialize};

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    broker: BrokerArgs,
}

/// Asks a kitchen for a dish.
#[derive(Serialize, Deserialize)]
struct Cook {
    dish: String,
}

impl Request for Cook {
    const METHOD: &'static str = "cook";
    type Reply = String;
}

/// Asks a kitchen for every course of a menu, one after the other.
#[derive(Serialize, Deserialize)]
struct Serve {
    courses: u32,
}

impl Request for Serve {
    const METHOD: &'static str = "serve";
    type Reply = String;
}

async fn cook(order: Cook, context: Context) -> Result<String, HandlerError> {
    if order.dish == "soufflé" {
        // It takes for ever, unless the guest leaves.
        context.cancellation().cancelled().await;
        println!("kitchen: the {} is called off", order.dish);
        return Err(HandlerError::transient("nobody waits for it"));
    }
    Ok(format!("hot {}", order.dish))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Args { broker } = Args::parse();
    let kitchen = broker.connect().await?;
    let server = RpcServer::new("kitchen")
        .method(cook)
        .stream_method(|menu: Serve, _context| async move {
            // The next course is made when there is room for it on the table.
            Ok(stream::iter(1..=menu.courses).map(|course| Ok(format!("course {course}"))))
        })
        .start(&kitchen)
        .await?;

    let transport = broker.connect().await?;
    let client = RpcClient::new(&transport).await?;
    let order = |dish: &str| client.call_async("kitchen", &Cook { dish: dish.into() });

    // All of them are under way before the first is awaited.
    let (soup, pasta, mut souffle) = (order("soup"), order("pasta"), order("soufflé"));
    println!("pasta: {}", pasta.await?);
    println!("soup: {}", soup.await?);

    // A handle can be awaited for a while, and again later. The kitchen is told when its call is
    // cancelled, or when the handle is dropped.
    if tokio::time::timeout(Duration::from_millis(500), &mut souffle).await.is_err() {
        println!("soufflé ready: {}", souffle.is_finished());
        souffle.cancel();
        if let Err(error) = souffle.await {
            println!("soufflé: {error}");
        }
    }

    // A reply of many items: at most two of them are on their way.
    let options = StreamOptions::default().with_window(2);
    let mut menu = client.call_stream("kitchen", &Serve { courses: 3 }, options).await?;
    while let Some(course) = menu.next().await {
        println!("menu: {}", course?);
    }

    // By name, for a service whose types are not at hand.
    let options = CallOptions::default().with_timeout(Duration::from_secs(5));
    let params = BTreeMap::from([("dish", "coffee")]);
    let coffee = client.call_async_named::<_, String>("kitchen", "cook", &params, options);
    println!("coffee: {}", coffee.await?);

    server.stop(Duration::from_secs(5)).await;
    transport.close(Duration::from_secs(5)).await?;
    kitchen.close(Duration::from_secs(5)).await?;
    Ok(())
}
