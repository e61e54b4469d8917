//! RPC: call a service, take its answer, and tell a "no" from "nobody there".
//!
//! `cargo run -p postrider-examples --bin rpc`

use std::{error::Error, time::Duration};

use clap::Parser;
use postrider::{Context, HandlerError, Request, RpcClient, RpcError, RpcServer};
use postrider_examples::BrokerArgs;
use serde::{Deserialize, Serialize};

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    broker: BrokerArgs,
}

/// Asks a bank to change money.
#[derive(Serialize, Deserialize)]
struct Change {
    cents: u64,
    into: String,
}

impl Request for Change {
    const METHOD: &'static str = "change";
    type Reply = u64;
}

async fn change(request: Change, _: Context) -> Result<u64, HandlerError> {
    match request.into.as_str() {
        "yen" => Ok(request.cents * 3 / 2),
        other => Err(HandlerError::rejected("NO_SUCH_MONEY", format!("we have no {other}"))),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Args { broker } = Args::parse();

    // The service. In real life it is a program of its own with its own connection.
    let bank = broker.connect().await?;
    let server = RpcServer::new("bank").method(change).start(&bank).await?;

    // Its caller.
    let transport = broker.connect().await?;
    let client = RpcClient::new(&transport).await?;

    let yen = client.call("bank", &Change { cents: 1_000, into: "yen".into() }).await?;
    println!("$10.00 are {yen} yen");

    // A no of the service is an answer, with a code for programs and a text for people.
    match client.call("bank", &Change { cents: 1_000, into: "shells".into() }).await {
        Err(RpcError::Rejected { code, message, .. }) => {
            println!("the bank says {code}: {message}");
        }
        other => println!("not expected: {other:?}"),
    }

    // A service that nobody runs is known at once; no timeout is waited for.
    match client.call("casino", &Change { cents: 1_000, into: "chips".into() }).await {
        Err(error @ RpcError::Unavailable { .. }) => println!("{error}"),
        other => println!("not expected: {other:?}"),
    }

    server.stop(Duration::from_secs(5)).await;
    transport.close(Duration::from_secs(5)).await?;
    bank.close(Duration::from_secs(5)).await?;
    Ok(())
}
