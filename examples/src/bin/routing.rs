//! Routing: the purchases of the CDNOW sample, split, sent where rules say, and put together again.
//!
//! `cargo run -p postrider-examples --bin routing`
//!
//! A message holds all purchases of a customer. A splitter makes one of each; a router sends copies
//! of the large ones aside and all of them on; an aggregator makes one message of each customer's.
//! Half way the rule for large ones is changed by a message to the router.

use std::{collections::BTreeMap, error::Error, sync::Arc, time::Duration};

use clap::Parser;
use postrider::{
    Address, Codec, ConsumerOptions, Envelope, Message, Publisher, PublisherExt, PublisherOptions,
    Queue, RpcClient, Topology, Transport,
    routing::{
        Aggregator, Change, ChangeRules, Completion, Condition, Field, Flow, Matching, Route,
        Router, Rule, Splitter,
    },
};
use postrider_examples::{BrokerArgs, input::Input, units::Cents};
use serde::{Deserialize, Serialize};

const CUSTOMERS: &str = "routing.customers";
const PURCHASES: &str = "routing.purchases";
const LARGE: &str = "routing.large";
const LEDGER: &str = "routing.ledger";
const SUMS: &str = "routing.sums";
const CONTROL: &str = "routing.control";

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    broker: BrokerArgs,
    /// How many customers of the sample
    #[arg(long, default_value_t = 200)]
    customers: usize,
}

#[derive(Serialize, Deserialize)]
struct Customer {
    customer: u32,
    purchases: Vec<Purchase>,
}

#[derive(Serialize, Deserialize)]
struct Purchase {
    cds: u32,
    cents: u64,
}

/// The customers of the sample with what they bought, by their numbers.
fn customers(number: usize) -> Vec<Customer> {
    let input = Input::parse(include_bytes!("../../data/CDNOW_sample.txt"));
    let mut customers: BTreeMap<u32, Vec<Purchase>> = BTreeMap::new();
    for one in input.purchases {
        let purchase = Purchase { cds: one.cds, cents: one.price.0 };
        customers.entry(one.customer).or_default().push(purchase);
    }
    let customers = customers.into_iter().take(number);
    customers.map(|(customer, purchases)| Customer { customer, purchases }).collect()
}

/// The rule for purchases of so many dollars and more.
fn large(dollars: i64) -> Rule {
    let is_large = Condition::at_least(Field::body("cents"), dollars * 100);
    Rule::new("large", is_large, [Route::queue(LARGE)])
}

async fn start(transport: &Arc<dyn Transport>) -> Result<[Flow; 3], postrider::Error> {
    let queues = [CUSTOMERS, PURCHASES, LARGE, LEDGER, SUMS];
    let outlets = [LARGE, SUMS].map(Queue::durable);
    let outlets = outlets.into_iter().fold(Topology::new(), Topology::queue);
    transport.declare(&outlets).await?;
    let ledger = Aggregator::new(LEDGER, Completion::Parts, Route::queue(SUMS))
        .combine(|customer| {
            let cents = |part: &Arc<postrider::routing::Inbound>| {
                part.decode::<Purchase>().map(|purchase| purchase.cents)
            };
            let spent = customer.parts.iter().map(cents).sum::<Result<u64, _>>()?;
            Ok(Message::new(Codec::Json.encode(&spent)?).with_content_type("application/json"))
        })
        .start(transport)
        .await?;
    let router = Router::new(PURCHASES)
        .matching(Matching::All)
        .rule(large(100))
        .rule(Rule::new("ledger", Condition::Always, [Route::queue(LEDGER)]))
        .controlled(CONTROL)
        .start(transport)
        .await?;
    let list = Field::body("purchases");
    let splitter = Splitter::list(CUSTOMERS, list, Route::queue(PURCHASES));
    let splitter = splitter.start(transport).await?;
    // What an earlier run left is not counted.
    for queue in queues {
        transport.purge(queue).await?;
    }
    Ok([splitter, router, ledger])
}

/// Sends customers in, and says what comes out.
async fn trade(
    transport: &dyn Transport,
    publisher: &dyn Publisher,
    customers: &[Customer],
) -> Result<(), Box<dyn Error>> {
    for customer in customers {
        let body = Codec::MessagePack.encode(customer)?;
        let message = Message::new(body)
            .with_content_type("application/msgpack")
            .with_message_id(format!("customer-{}", customer.customer));
        publisher.publish(Envelope::new(Address::queue(CUSTOMERS), message)).await?;
    }
    let mut sums = transport.consumer(SUMS, ConsumerOptions::default()).await?;
    let mut spent = BTreeMap::new();
    while spent.len() < customers.len() {
        let sum = sums.recv().await.ok_or("the consumer ended")??;
        let Message { correlation_id, body, content_type, .. } = sum.message();
        let customer = correlation_id.clone().ok_or("a sum of nobody")?;
        spent.insert(customer, Codec::decode::<u64>(content_type.as_deref(), body)?);
        sum.ack();
    }
    let purchases: usize = customers.iter().map(|customer| customer.purchases.len()).sum();
    let total: Cents = spent.values().copied().map(Cents).sum();
    println!("{} customers, {purchases} purchases, {total}", spent.len());
    Ok(())
}

/// How many large purchases there are, once the router is done with all.
async fn large_ones(transport: &dyn Transport, router: &Flow, done: u64) -> postrider::Result<u64> {
    while router.stats().run.acked < done {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    transport.purge(LARGE).await
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Args { broker, customers: number } = Args::parse();
    let transport = broker.connect().await?;
    let [splitter, router, ledger] = start(&transport).await?;
    let publisher = transport.publisher(PublisherOptions::default()).await?;
    let client = RpcClient::new(&transport).await?;

    let customers = customers(number);
    let (first, rest) = customers.split_at(customers.len() / 2);
    let purchases = |customers: &[Customer]| -> u64 {
        customers.iter().map(|customer| customer.purchases.len() as u64).sum()
    };
    trade(&*transport, &*publisher, first).await?;
    let large_ones_before = large_ones(&*transport, &router, purchases(first)).await?;
    println!("{large_ones_before} purchases of $100 and more");

    let change = ChangeRules::new([Change::Replace(large(50))]).if_version(0);
    let changed = client.call(CONTROL, &change).await?;
    println!("the router has version {} of its rules", changed.version);
    let wrong = ChangeRules::new([Change::Remove("small".to_owned())]);
    if let Err(refused) = client.call(CONTROL, &wrong).await {
        println!("{refused}");
    }

    trade(&*transport, &*publisher, rest).await?;
    let large_ones_after = large_ones(&*transport, &router, purchases(&customers)).await?;
    println!("{large_ones_after} purchases of $50 and more");

    for flow in [splitter, router, ledger] {
        flow.stop(Duration::from_secs(5)).await;
    }
    transport.close(Duration::from_secs(5)).await?;
    Ok(())
}
