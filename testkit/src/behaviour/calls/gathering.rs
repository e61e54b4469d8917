//! One request to all servers of a service.

use std::{future::pending, sync::Arc, time::Duration};

use postrider_core::{Queue, Topology, Transport};
use postrider_patterns::{Context, Gather, HandlerError, RpcError, Running};
use tokio::sync::{Barrier, mpsc};

use super::service::{Double, MATH, Service, failed};
use crate::{
    Scene,
    behaviour::{Behaviour, Need},
};

pub(super) fn behaviours() -> Vec<Behaviour> {
    const NEEDS: &[Need] = &[Need::Topology];
    vec![
        Behaviour::new(all_servers_answer_once_each, NEEDS),
        Behaviour::new(the_first_and_a_quorum_end_early_and_the_others_are_told, NEEDS),
        Behaviour::new(who_is_missing_at_the_deadline_is_a_value, NEEDS),
        Behaviour::new(gathering_from_nobody_is_unavailable, NEEDS),
        Behaviour::new(a_server_that_lost_its_queue_for_all_goes_on, NEEDS),
    ]
}

/// What the servers of a test do: one answers, one fails, the others wait to be called off.
#[derive(Debug, Clone, Copy)]
enum Conduct {
    Answer,
    Fail,
    Wait,
}

/// Servers on connections of their own; each tells when it is called off. None of them does
/// anything before all have the request: one that is called off first would never run it.
async fn servers<const N: usize>(
    service: &Service,
    conducts: [Conduct; N],
) -> (Vec<(Running, Arc<dyn Transport>)>, mpsc::UnboundedReceiver<()>) {
    let (told, called_off) = mpsc::unbounded_channel();
    let all_have_it = Arc::new(Barrier::new(N));
    let mut servers = Vec::new();
    for conduct in conducts {
        let connection = service.scene.connect().await;
        let (told, all_have_it) = (told.clone(), Arc::clone(&all_have_it));
        let server = service.server().method(move |Double(number), context: Context| {
            let (told, all_have_it) = (told.clone(), Arc::clone(&all_have_it));
            async move {
                all_have_it.wait().await;
                match conduct {
                    Conduct::Answer => Ok(number * 2),
                    Conduct::Fail => Err(HandlerError::rejected("NOT_ME", "ask another")),
                    Conduct::Wait => {
                        context.cancellation().cancelled().await;
                        told.send(())?;
                        pending().await
                    }
                }
            }
        });
        let running = service.start_on(&connection.transport, server).await;
        servers.push((running, connection.transport));
    }
    service.scene.has_consumers(&service.queue(), u32::try_from(N).expect("a few")).await;
    (servers, called_off)
}

async fn all_servers_answer_once_each(scene: Scene) {
    let service = Service::new(scene.clone());
    let (_servers, _) = servers(&service, [Conduct::Answer, Conduct::Fail, Conduct::Answer]).await;
    let (client, _connection) = service.client().await;
    let gathering = client.gather(MATH, &Double(21), Gather::all());
    let gathered = scene.soon("all answers", gathering).await.expect("there are servers");
    assert_eq!(gathered.answers.iter().map(|answer| answer.data).collect::<Vec<_>>(), [42, 42]);
    assert_ne!(gathered.answers[0].from, gathered.answers[1].from);
    assert_eq!(gathered.errors.len(), 1);
    assert_eq!(gathered.errors[0].error.code(), "NOT_ME");
    assert_eq!((gathered.missing, gathered.reached), (0, false));
    assert_eq!(client.stats().in_flight, 0);
}

async fn the_first_and_a_quorum_end_early_and_the_others_are_told(scene: Scene) {
    use Conduct::{Answer, Wait};
    let service = Service::new(scene.clone());
    let (_servers, mut called_off) = servers(&service, [Wait, Answer, Answer, Wait]).await;
    let (client, _connection) = service.client().await;
    for (gather, answers) in [(Gather::first(), 1), (Gather::quorum(2), 2)] {
        let gathering = client.gather(MATH, &Double(1), gather);
        let gathered = scene.soon("enough answers", gathering).await.expect("there are servers");
        assert_eq!(gathered.answers.len(), answers);
        assert_eq!((gathered.missing, gathered.reached), (4 - answers, true));
        for _ in 0..2 {
            scene.soon("one that is not needed is told", called_off.recv()).await;
        }
    }
}

async fn who_is_missing_at_the_deadline_is_a_value(scene: Scene) {
    use Conduct::{Answer, Wait};
    let service = Service::new(scene.clone());
    let (_servers, mut called_off) = servers(&service, [Answer, Wait]).await;
    let (client, _connection) = service.client().await;
    let timeout = Duration::from_millis(500);
    let before = scene.env().now();
    let gathering = client.gather(MATH, &Double(1), Gather::all().with_timeout(timeout));
    let gathered = scene.soon("the deadline", gathering).await.expect("there are servers");
    let took = scene.env().now() - before;
    assert!(took >= timeout && took <= timeout + scene.lateness(), "it took {took:?}");
    assert_eq!((gathered.answers.len(), gathered.missing, gathered.reached), (1, 1, false));
    scene.soon("the other sees the deadline", called_off.recv()).await;
}

async fn gathering_from_nobody_is_unavailable(scene: Scene) {
    let service = Service::new(scene.clone());
    let (client, _connection) = service.client().await;
    let unavailable = |error: &RpcError| matches!(error, RpcError::Unavailable { sent: false, .. });
    let outcome = client.gather(MATH, &Double(1), Gather::all()).await;
    failed(outcome, unavailable, "there is no service");
    // Where services are asked by name it is a value as well.
    let services = [MATH, "history"];
    let gathered = client.gather_from(&services, &Double(1), Gather::all()).await;
    assert_eq!((gathered.errors.len(), gathered.reached), (2, false));
    let _server = service.doubling().await;
    let gathered = client.gather_from(&services, &Double(1), Gather::first()).await;
    assert_eq!((gathered.answers[0].from.as_str(), gathered.answers[0].data), (MATH, 2));
    assert!(gathered.reached);
}

async fn a_server_that_lost_its_queue_for_all_goes_on(scene: Scene) {
    let service = Service::new(scene.clone());
    let (servers, _) = servers(&service, [Conduct::Answer]).await;
    let (client, _connection) = service.client().await;
    let gathering = client.gather(MATH, &Double(1), Gather::all());
    let gathered = scene.soon("the answer", gathering).await.expect("there is a server");
    let (server, transport) = &servers[0];
    let queue = Queue::exclusive(service.queue_for_all(&gathered.answers[0].from));
    transport.remove(&Topology::new().queue(queue)).await.expect("it is deleted");
    let outcome = client.gather(MATH, &Double(1), Gather::all()).await;
    let unavailable = |error: &RpcError| matches!(error, RpcError::Unavailable { sent: false, .. });
    failed(outcome, unavailable, "no server takes requests to all");
    let reply = scene.soon("a call", client.call(MATH, &Double(21))).await;
    assert_eq!(reply.expect("the server goes on"), 42);
    assert!(server.is_running());
}
