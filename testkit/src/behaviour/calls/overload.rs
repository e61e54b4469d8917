//! What is too much is refused at once, and never queued without a bound.

use postrider_patterns::{ErrorClass, RpcError};

use super::service::{Double, Gate, MATH, Service, failed};
use crate::{
    Scene,
    behaviour::{Behaviour, Need},
};

pub(super) fn behaviours() -> Vec<Behaviour> {
    const NEEDS: &[Need] = &[Need::Topology];
    vec![
        Behaviour::new(a_client_refuses_more_calls_than_it_may_have_in_flight, NEEDS),
        Behaviour::new(a_service_refuses_more_requests_than_may_wait, NEEDS),
    ]
}

fn throttled(error: &RpcError) -> bool {
    matches!(error, RpcError::Throttled { .. })
}

async fn a_client_refuses_more_calls_than_it_may_have_in_flight(scene: Scene) {
    let service = Service::new(scene.clone());
    let (gate, mut begun) = Gate::new();
    let at_gate = gate.clone();
    let server = service.server().method(move |Double(number), _context| {
        let gate = at_gate.clone();
        async move { gate.pass(number).await }
    });
    let _server = service.start(server).await;
    let connection = scene.connect().await;
    let client = service.client_on(&connection.transport).max_in_flight(2).connect().await;
    let client = client.expect("a client connects");
    let calls = [1, 2].map(|number| client.call_async(MATH, &Double(number)));
    for _ in 0..2 {
        scene.soon("a call is handled", begun.recv()).await;
    }
    let error = failed(client.call(MATH, &Double(3)).await, throttled, "two are in flight");
    assert_eq!(error.class(), ErrorClass::Throttled);
    gate.open(3);
    for (number, call) in (1..).zip(calls) {
        assert_eq!(scene.soon("a reply", call).await.expect("a reply"), number * 2);
    }
    assert_eq!(client.call(MATH, &Double(3)).await.expect("there is room again"), 6);
    assert_eq!(gate.runs(), 3);
}

async fn a_service_refuses_more_requests_than_may_wait(scene: Scene) {
    let service = Service::new(scene.clone());
    let (gate, mut begun) = Gate::new();
    let at_gate = gate.clone();
    let server = service.server().concurrency(1).prefetch(1).max_waiting(2).method(
        move |Double(number), _context| {
            let gate = at_gate.clone();
            async move { gate.pass(number).await }
        },
    );
    let _server = service.start(server).await;
    let (client, _connection) = service.client().await;
    let first = client.call_async(MATH, &Double(1));
    scene.soon("the first call is handled", begun.recv()).await;
    let waiting = [2, 3].map(|number| client.call_async(MATH, &Double(number)));
    scene
        .eventually("two wait", async || match scene.info(&service.queue()).await.ready {
            2 => Ok(()),
            ready => Err(format!("{ready} wait")),
        })
        .await;
    let refused = scene.soon("the refusal", client.call(MATH, &Double(4))).await;
    failed(refused, throttled, "two requests wait");
    gate.open(3);
    assert_eq!(scene.soon("a reply", first).await.expect("a reply"), 2);
    for (number, call) in (2..).zip(waiting) {
        assert_eq!(scene.soon("a reply", call).await.expect("a reply"), number * 2);
    }
    assert_eq!(gate.runs(), 3);
}
