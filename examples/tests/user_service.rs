//! The user service as a process of its own, called over RabbitMQ: by a client that is not ours, and
//! while it is killed.

mod common;

use std::{
    future::ready,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use common::{Protocol, SOON, VirtualHost, variable};
use futures_util::{StreamExt, stream};
use postrider::{CallOptions, Codec, Env, RpcClient, RpcError};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command as AsyncCommand},
    task::spawn_blocking,
    time::{sleep, timeout},
};

/// A customer of the sample, with four orders.
const USER: u32 = 4;

/// How many calls are under way at once, as long as the server is being killed.
const IN_FLIGHT: usize = 64;

/// How often it is killed, the longest time that it lives before, and the longest until it is back:
/// calls notice after half a second that nobody serves them.
const KILLS: u32 = 8;
const LONGEST_LIFE: Duration = Duration::from_millis(400);
const LONGEST_ABSENCE: Duration = Duration::from_millis(1_200);

/// Starts the service and waits until it serves.
async fn serve(url: &str) -> Child {
    let mut service = AsyncCommand::new(env!("CARGO_BIN_EXE_user_service"))
        .args(["--broker", url])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the service starts");
    let said = service.stdout.take().expect("its output");
    let ready = async { BufReader::new(said).lines().next_line().await.expect("a line of text") };
    let ready = timeout(SOON, ready).await.expect("the service is ready");
    assert_eq!(ready.as_deref(), Some("ready: user_service serves rpc_user_service"));
    service
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_in_python_is_served() {
    serve_python(Protocol::Amqp091).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_in_python_is_served_over_amqp10() {
    serve_python(Protocol::Amqp10).await;
}

async fn serve_python(protocol: Protocol) {
    let python = variable("POSTRIDER_PYTHON");
    let host = VirtualHost::new(protocol).await;
    let mut service = serve(&host.users_url()).await;
    // What the client speaks, whatever the service does.
    let url = host.url_by(Protocol::Amqp091, host.name());
    let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/foreign/user_service.py");
    let output = spawn_blocking(move || {
        Command::new(python).arg(tests).env("AMQP_URL", url).output().expect("Python runs")
    });
    let output = timeout(SOON, output).await.expect("the tests end").expect("their output");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("Ran 6 tests"), "{said}");
    service.kill().await.expect("the service ends");
    host.remove().await;
}

/// How the calls ended.
#[derive(Debug, Default)]
struct Ends {
    answered: u32,
    unavailable: u32,
    unknown: u32,
    timed_out: u32,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_has_one_definite_end_while_its_server_is_killed() {
    kill_the_server(Protocol::Amqp091).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_has_one_definite_end_while_its_server_is_killed_over_amqp10() {
    kill_the_server(Protocol::Amqp10).await;
}

async fn kill_the_server(protocol: Protocol) {
    let seed = std::env::var("POSTRIDER_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| Env::system().random());
    println!("POSTRIDER_SEED={seed}");
    let moments = Env::simulated(seed);
    let host = VirtualHost::new(protocol).await;
    let url = host.users_url();
    let transport = postrider::connect(&host.url("guest")).await.expect("a connection");
    let client = RpcClient::builder(&transport).codec(Codec::Json).connect().await;
    let client = client.expect("a client");
    let mut service = serve(&url).await;

    let over = AtomicBool::new(false);
    let begun = AtomicU32::new(0);
    let calls = stream::repeat(()).take_while(|()| ready(!over.load(Ordering::Relaxed)));
    let calls = calls.map(|()| {
        begun.fetch_add(1, Ordering::Relaxed);
        let options = CallOptions::default().with_timeout(Duration::from_secs(10));
        let params = json!({ "user_id": USER });
        let client = &client;
        async move {
            let call = client.call_named("user_service", "get_user_info", &params, options);
            // The end that a call has within its own time is its only one: the future is done.
            timeout(Duration::from_secs(20), call).await.expect("the call ends")
        }
    });
    let calling = async {
        let mut ends = Ends::default();
        let mut calls = calls.buffer_unordered(IN_FLIGHT);
        while let Some(outcome) = calls.next().await {
            let outcome: Result<Value, RpcError> = outcome;
            match outcome {
                Ok(reply) => {
                    assert_eq!((&reply["user_id"], &reply["orders"]), (&json!(USER), &json!(4)));
                    ends.answered += 1;
                }
                Err(RpcError::Unavailable { .. }) => {
                    ends.unavailable += 1;
                    // Nothing is gained by asking again at once.
                    sleep(Duration::from_millis(5)).await;
                }
                Err(RpcError::Unknown { .. }) => ends.unknown += 1,
                Err(RpcError::TimedOut { .. }) => ends.timed_out += 1,
                Err(error) => panic!("no end that a killed server explains: {error:?}"),
            }
        }
        ends
    };
    let killing = async {
        for _ in 0..KILLS {
            sleep(LONGEST_LIFE.mul_f64(moments.random_unit())).await;
            service.kill().await.expect("SIGKILL");
            sleep(LONGEST_ABSENCE.mul_f64(moments.random_unit())).await;
            service = serve(&url).await;
        }
        over.store(true, Ordering::Relaxed);
    };
    let (ends, ()) = tokio::join!(calling, killing);
    println!("{ends:?}, {}", client.stats());
    let ended = ends.answered + ends.unavailable + ends.unknown + ends.timed_out;
    assert_eq!(ended, begun.load(Ordering::Relaxed));
    assert!(ends.answered > 0, "{ends:?}");
    assert_eq!(client.stats().in_flight, 0);
    // A last one, of the last server.
    let options = CallOptions::default();
    let params = json!({ "user_id": USER });
    let reply = client.call_named::<_, Value>("user_service", "get_user_info", &params, options);
    assert_eq!(timeout(SOON, reply).await.expect("an end").expect("a reply")["orders"], 4);
    service.kill().await.expect("the service ends");
    transport.close(SOON).await.expect("closing");
    host.remove().await;
}
