//! A CD shop: services that process real orders by messages, over any broker.
//!
//! An order is taken by the order service (event `order.created`), which asks the inventory to
//! reserve the CDs and the payment service to charge the customer (RPC), and says how it ended
//! (`order.paid`, `order.refused`). Shipping sends what was paid (`order.shipped`), notification
//! writes to the customer (task `send_email`), and sales reports on each day when its orders are
//! settled (task `generate_report`).
//!
//! Every service is a module that knows [`contract`], its own state and a transport; no service
//! knows another one. They run in one process here so that one command shows all of them; each
//! has a connection of its own. One shop at a time uses a broker: two would share their queues.

mod book;
mod contract;
mod inventory;
mod notification;
mod order;
mod output;
mod payment;
mod sales;
mod services;
mod setup;
mod shipping;
#[cfg(test)]
mod tests;
mod trade;

use std::{error::Error, fs, io::Write, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use postrider::{Codec, Env};
use postrider_examples::{BrokerArgs, input, units};

use crate::{
    book::Board,
    contract::{Order, OrderId},
    input::Input,
    output::{Facts, Summary},
    services::{Connections, Services},
    setup::Setup,
    trade::{PATIENCE, Trade},
};

/// The orders that are used unless a file is given.
const SAMPLE: (&str, &[u8]) =
    ("CDNOW_sample.txt", include_bytes!("../../../data/CDNOW_sample.txt"));

/// How long services may take to finish what they have in hand.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// What a program ends with that was stopped by Ctrl-C.
const INTERRUPTED: u8 = 130;

/// Runs a CD shop over a message broker: real orders of 1997 and 1998 through six services.
#[derive(Debug, Parser)]
#[command(name = "shop")]
struct Args {
    #[command(flatten)]
    broker: BrokerArgs,

    /// How messages are encoded: msgpack or json
    #[arg(long, value_name = "CODEC", default_value_t)]
    codec: Codec,

    /// A file of orders; each line holds customer, [customer in the sample,] yyyymmdd, CDs, dollars
    /// [default: the sample that comes with the program]
    #[arg(long, value_name = "FILE")]
    orders: Option<PathBuf>,

    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("shop: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<ExitCode, Box<dyn Error>> {
    let input = read(args.orders)?;
    let connections = connect(&args.broker).await?;
    let transport = connections.order.url().to_owned();
    let env = connections.order.env().clone();
    let setup = Setup { run: run_id(&env), codec: args.codec, board: Board::default() };
    let orders = orders(&input, &setup.run);
    let services = Services::start(connections, &setup, &orders).await?;

    let started = env.now();
    let bar = output::progress(orders.len() as u64);
    let days = orders.chunk_by(|one, next| one.day == next.day).count() as u64;
    let trade = Trade {
        services: &services,
        setup: &setup,
        env: &env,
        orders: &orders,
        days,
        patience: PATIENCE,
    };
    let end = tokio::select! {
        traded = trade.run(&bar) => traded.map(|()| ExitCode::SUCCESS),
        why = services.ended() => Err(why),
        Ok(()) = tokio::signal::ctrl_c() => Ok(ExitCode::from(INTERRUPTED)),
    };
    let elapsed = env.now() - started;
    bar.finish_and_clear();
    let interrupted = end.as_ref().is_ok_and(|code| *code != ExitCode::SUCCESS);
    if interrupted {
        eprintln!("shop: interrupted; the services finish what they have in hand");
    }
    let released = services.stop(&env, STOP_WITHIN).await;
    let figures = setup.board.watch().borrow().clone();
    let code = end?;
    if interrupted {
        let (done, all) = (figures.emails_sent, orders.len());
        eprintln!("shop: {done} of {all} orders are done, {released} messages went back");
        return Ok(code);
    }
    figures.audit()?;

    let facts = Facts {
        orders: orders.len() as u64,
        customers: input.customers() as u64,
        days: orders.first().zip(orders.last()).map(|(first, last)| (first.day, last.day)),
        bad_lines: input.bad_lines.len() as u64,
        elapsed_ms: u64::try_from(elapsed.as_millis())?,
        transport,
        codec: args.codec.to_string(),
    };
    let summary = Summary::new(facts, &figures);
    let text = match args.json {
        true => serde_json::to_string(&summary)? + "\n",
        false => summary.table(),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(code)
}

/// Reads the orders, and says on stderr which lines are none.
fn read(file: Option<PathBuf>) -> Result<Input, String> {
    let (name, contents) = match file {
        Some(path) => {
            let name = path.display().to_string();
            let contents =
                fs::read(path).map_err(|error| format!("cannot read {name}: {error}"))?;
            (name, contents)
        }
        None => (SAMPLE.0.to_owned(), SAMPLE.1.to_vec()),
    };
    let input = Input::parse(&contents);
    for line in &input.bad_lines {
        eprintln!("{name}:{line}");
    }
    Ok(input)
}

async fn connect(broker: &BrokerArgs) -> postrider::Result<Connections> {
    Ok(Connections {
        order: broker.connect().await?,
        inventory: broker.connect().await?,
        payment: broker.connect().await?,
        shipping: broker.connect().await?,
        notification: broker.connect().await?,
        sales: broker.connect().await?,
    })
}

/// A name for this run that no other run has.
fn run_id(env: &Env) -> String {
    format!("{:012x}", env.random() >> 16)
}

fn orders(input: &Input, run: &str) -> Vec<Order> {
    let numbered = (1..).zip(&input.purchases);
    let order = |(number, purchase): (usize, &input::Purchase)| Order {
        id: OrderId::new(run, number),
        customer: purchase.customer,
        day: purchase.day,
        cds: purchase.cds,
        price: purchase.price,
    };
    numbered.map(order).collect()
}
