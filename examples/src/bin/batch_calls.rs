//! Many calls at once: a batch with an outcome for each, and one question to every server.
//!
//! `cargo run -p postrider-examples --bin batch_calls`

use std::{borrow::Cow, error::Error, time::Duration};

use clap::Parser;
use postrider::{
    BatchOptions, Context, DomainError, Gather, HandlerError, Request, RpcClient, RpcServer,
};
use postrider_examples::BrokerArgs;
use serde::{Deserialize, Serialize};

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    broker: BrokerArgs,
}

/// Asks for the square root of a whole number.
#[derive(Serialize, Deserialize)]
struct Root {
    of: i64,
}

impl Request for Root {
    const METHOD: &'static str = "root";
    /// The answer does not depend on how often it is asked for.
    const IDEMPOTENT: bool = true;
    type Reply = f64;
}

/// Why there is none; callers get it as this type.
#[derive(Debug, Serialize, Deserialize)]
struct Negative {
    by: u64,
}

impl std::fmt::Display for Negative {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} too little", self.by)
    }
}

impl Error for Negative {}

impl DomainError for Negative {
    fn code(&self) -> Cow<'static, str> {
        "NEGATIVE".into()
    }
}

async fn root(request: Root, _: Context) -> Result<f64, HandlerError> {
    if request.of < 0 {
        return Err(HandlerError::domain(Negative { by: request.of.unsigned_abs() }));
    }
    Ok((request.of as f64).sqrt())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Args { broker } = Args::parse();
    let mut servers = Vec::new();
    for _ in 0..3 {
        let transport = broker.connect().await?;
        let server = RpcServer::new("roots").method(root).start(&transport).await?;
        servers.push((server, transport));
    }

    let transport = broker.connect().await?;
    let client = RpcClient::new(&transport).await?;

    // A hundred calls, ten at a time, all within two seconds. The servers share them.
    let options = BatchOptions::default().with_in_flight(10).with_timeout(Duration::from_secs(2));
    let requests = (-3..97).map(|of| Root { of });
    let outcomes = client.call_batch("roots", requests, options).await;
    let sum: f64 = outcomes.iter().flatten().sum();
    println!(
        "{} calls, {} answers, their sum is {sum:.3}",
        outcomes.len(),
        outcomes.iter().flatten().count()
    );
    for error in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        match error.domain::<Negative>() {
            Some(Negative { by }) => println!("no root: negative by {by}"),
            None => println!("not expected: {error}"),
        }
    }

    // The same question to every server, until two of them say the same.
    let gathered = client.gather("roots", &Root { of: 49 }, Gather::quorum(2)).await?;
    let answers: Vec<_> = gathered.answers.iter().map(|answer| answer.data).collect();
    println!("a quorum says {answers:?}");
    let all = client.gather("roots", &Root { of: 81 }, Gather::all()).await?;
    println!("{} servers answered, {} are missing", all.answers.len(), all.missing);

    for (server, transport) in servers {
        server.stop(Duration::from_secs(5)).await;
        transport.close(Duration::from_secs(5)).await?;
    }
    transport.close(Duration::from_secs(5)).await?;
    Ok(())
}
