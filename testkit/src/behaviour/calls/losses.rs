//! Lost connections with calls in flight, on either side.

use postrider_patterns::{ErrorClass, RpcError};

use super::service::{Double, DoubleOnce, Gate, MATH, Service, failed};
use crate::{
    Scene,
    behaviour::{Behaviour, Need},
    harness::Fault,
};

pub(super) fn behaviours() -> Vec<Behaviour> {
    const LOSS: &[Need] = &[Need::Topology, Need::Fault(Fault::ConnectionLoss)];
    vec![
        Behaviour::new(calls_of_a_lost_connection_are_unknown_and_the_client_goes_on, LOSS),
        Behaviour::new(idempotent_calls_outlive_a_lost_connection, LOSS),
        Behaviour::new(a_server_that_lost_its_connection_goes_on, LOSS),
    ]
}

async fn calls_of_a_lost_connection_are_unknown_and_the_client_goes_on(scene: Scene) {
    let service = Service::new(scene.clone());
    let (gate, mut begun) = Gate::new();
    let at_gate = gate.clone();
    let server = service.server().method(move |Double(number), _context| {
        let gate = at_gate.clone();
        async move { gate.pass(number).await }
    });
    let _server = service.start(server).await;
    let (client, connection) = service.client().await;
    let mut events = connection.transport.events();
    let calls = [1, 2, 3].map(|number| client.call_async(MATH, &Double(number)));
    for _ in 0..3 {
        scene.soon("a call is handled", begun.recv()).await;
    }
    connection.cut().await;
    for call in calls {
        let outcome = scene.soon("the call ends", call).await;
        let unknown = |error: &RpcError| matches!(error, RpcError::Unknown { .. });
        let error = failed(outcome, unknown, "its reply may be lost");
        assert_eq!(error.class(), ErrorClass::Unknown);
    }
    assert_eq!(client.stats().in_flight, 0);
    scene.restored(&mut events, 2).await;
    gate.open(4);
    let reply = scene.soon("a call after the loss", client.call(MATH, &Double(21))).await;
    assert_eq!(reply.expect("a reply"), 42);
}

async fn idempotent_calls_outlive_a_lost_connection(scene: Scene) {
    let service = Service::new(scene.clone());
    let (gate, mut begun) = Gate::new();
    let at_gate = gate.clone();
    let server = service.server().method(move |DoubleOnce(number), _context| {
        let gate = at_gate.clone();
        async move { gate.pass(number).await }
    });
    let _server = service.start(server).await;
    let (client, connection) = service.client().await;
    let calls = [1, 2, 3].map(|number| client.call_async(MATH, &DoubleOnce(number)));
    for _ in 0..3 {
        scene.soon("a call is handled", begun.recv()).await;
    }
    connection.cut().await;
    scene
        .eventually("the calls are made again", async || match client.stats().sent_again {
            3 => Ok(()),
            again => Err(format!("{again} are")),
        })
        .await;
    gate.open(3);
    for (number, call) in (1..).zip(calls) {
        let reply = scene.soon("a reply", call).await;
        assert_eq!(reply.expect("a reply"), number * 2);
    }
    // They came twice and were run once.
    assert_eq!(gate.runs(), 3);
}

async fn a_server_that_lost_its_connection_goes_on(scene: Scene) {
    let service = Service::new(scene.clone());
    let (gate, mut begun) = Gate::new();
    let at_gate = gate.clone();
    let server = service.server().method(move |DoubleOnce(number), _context| {
        let gate = at_gate.clone();
        async move { gate.pass(number).await }
    });
    let serving = scene.connect().await;
    let server = service.start_on(&serving.transport, server).await;
    let (client, _connection) = service.client().await;
    let mut events = serving.transport.events();
    let call = client.call_async(MATH, &DoubleOnce(1));
    scene.soon("the call is handled", begun.recv()).await;
    serving.cut().await;
    scene.restored(&mut events, 2).await;
    gate.open(1);
    // Its request is delivered again, and waits for the run that is under way.
    assert_eq!(scene.soon("the reply", call).await.expect("a reply"), 2);
    assert_eq!(gate.runs(), 1);
    // Its own queues are back too: it is told of what is given up.
    let given_up = client.call_async(MATH, &DoubleOnce(2));
    scene.soon("the next call is handled", begun.recv()).await;
    drop(given_up);
    gate.open(1);
    scene
        .eventually("the server has heard of it, or answered nobody", async || {
            let stats = server.stats();
            if stats.cancelled + client.stats().late_replies > 0 {
                Ok(())
            } else {
                Err(format!("{stats:?}"))
            }
        })
        .await;
}
