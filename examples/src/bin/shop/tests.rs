//! The whole shop over brokers that misbehave.

use std::{sync::Arc, time::Duration};

use indicatif::ProgressBar;
use postrider::{Codec, Env, EventBus, Transport, inmemory::InMemory};

use crate::{
    book::{Board, Figures},
    contract::{Order, OrderCreated, OrderId, OrderPaid},
    services::{Connections, Services},
    setup::Setup,
    trade::{PATIENCE, Trade},
    units::{Cents, Day},
};

const RUN: &str = "run";

fn setup() -> Setup {
    Setup { run: RUN.into(), codec: Codec::Json, board: Board::default() }
}

/// Orders of 1 to 25 CDs on ten days, a fifth of them refused by inventory; with 25 orders each
/// number of CDs is there once.
fn orders(number: usize) -> Vec<Order> {
    let order = |index: usize| {
        let cds = u32::try_from(index % 25 + 1).unwrap();
        let day = Day::parse(&format!("199701{:02}", index * 10 / number + 1)).unwrap();
        let id = OrderId::new(RUN, index);
        Order { id, customer: 1, day, cds, price: Cents(u64::from(cds) * 1_600) }
    };
    (0..number).map(order).collect()
}

/// Connections of one broker, and the same as what they are, to be misused.
fn connections(url: &str) -> (Connections, Vec<Arc<InMemory>>) {
    let all: Vec<_> = (0..6).map(|_| Arc::new(InMemory::connect(url).unwrap())).collect();
    let of = |index: usize| Arc::clone(&all[index]) as Arc<dyn Transport>;
    let connections = Connections {
        order: of(0),
        inventory: of(1),
        payment: of(2),
        shipping: of(3),
        notification: of(4),
        sales: of(5),
    };
    (connections, all)
}

async fn trade(services: &Services, setup: &Setup, orders: &[Order]) -> Result<Figures, String> {
    let env = Env::system();
    let trade = Trade { services, setup, env: &env, orders, days: 10, patience: PATIENCE };
    trade.run(&ProgressBar::hidden()).await?;
    let figures = setup.board.watch().borrow().clone();
    figures.audit().map(|()| figures)
}

/// What must come out: over 20 CDs the inventory refuses, 19 and 20 cost over 300 dollars.
fn assert_true(figures: &Figures, orders: u64) {
    assert_eq!(figures.refused_by_inventory, orders / 25 * 5);
    assert_eq!(figures.refused_by_payment, orders / 25 * 2);
    assert_eq!(figures.completed, orders / 25 * 18);
    assert_eq!(figures.cds_shipped, orders / 25 * (18 * 19 / 2));
    assert_eq!(figures.revenue, Cents(figures.cds_shipped * 1_600));
    assert_eq!((figures.emails_sent, figures.reports), (orders, 10));
    // Each order is created; it is paid and shipped, or refused.
    assert_eq!(figures.events_published, orders + 2 * figures.completed + orders / 25 * 7);
    // Each order is to be reserved, what the inventory has is to be charged, two are released.
    assert_eq!(figures.rpc_calls, orders + orders / 25 * (20 + 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_connections_change_nothing_in_the_end() {
    let (orders, setup) = (orders(2_000), setup());
    let (connections, to_lose) = connections("memory://lost");
    let services = Services::start(connections, &setup, &orders).await.unwrap();
    let mut board = setup.board.watch();
    let losing = tokio::spawn(async move {
        // Each connection five times, spread over the run.
        for turn in 1..=30_u64 {
            board.wait_for(|figures| figures.emails_sent >= turn * 60).await.unwrap();
            to_lose[turn as usize % to_lose.len()].drop_connection();
        }
    });
    let figures = trade(&services, &setup, &orders).await.unwrap();
    losing.await.unwrap();
    assert_true(&figures, 2_000);
    assert!(figures.duplicates > 0, "a lost connection brings messages again");
    assert_eq!(services.given_up(), "");
    services.stop(&Env::system(), Duration::from_secs(5)).await;
}

#[tokio::test]
async fn what_comes_twice_and_what_others_left_is_told_apart() {
    let (orders, setup) = (orders(25), setup());
    let (connections, _) = connections("memory://left");
    let services = Services::start(connections, &setup, &orders).await.unwrap();
    let bus = EventBus::new(&postrider::connect("memory://left").await.unwrap()).await.unwrap();
    let stranger = Order { id: OrderId::new("another", 1), ..orders[0].clone() };
    bus.publish(&OrderCreated { order: stranger.clone() }).await.unwrap();
    bus.publish(&OrderPaid { order: stranger }).await.unwrap();
    services.desk.place(&orders[..10]).await.unwrap();

    let mut figures = trade(&services, &setup, &orders).await.unwrap();
    assert_true(&figures, 25);
    // `order.paid` of the stranger goes to shipping and to sales.
    let mut board = setup.board.watch();
    let told = |figures: &Figures| figures.left_over >= 3 && figures.duplicates >= 10;
    figures.clone_from(&*board.wait_for(told).await.unwrap());
    assert_true(&figures, 25);
    assert_eq!(figures.left_over, 3);
    services.stop(&Env::system(), Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_run_that_cannot_end_says_what_is_missing() {
    let (mut orders, setup) = (orders(25), setup());
    let (connections, _) = connections("memory://stalled");
    let services = Services::start(connections, &setup, &orders).await.unwrap();
    // An order of another run is nothing that this shop works on.
    orders[3].id = OrderId::new("another", 3);
    let error = trade(&services, &setup, &orders).await.unwrap_err();
    assert_eq!(
        error,
        "nothing has happened for 60 s: placed, but neither shipped nor refused: 1, \
         reports not written: 1"
    );
}

#[tokio::test]
async fn a_service_that_ends_is_named() {
    let setup = setup();
    let (connections, _) = connections("memory://ended");
    let admin = connections.order.clone();
    let services = Services::start(connections, &setup, &[]).await.unwrap();
    let queue = postrider::Queue::classic("rpc_payment");
    admin.remove(&postrider::Topology::new().queue(queue)).await.unwrap();
    let why = services.ended().await;
    assert!(why.starts_with("queue 'rpc_payment' is not consumed any more:"), "{why}");
}
