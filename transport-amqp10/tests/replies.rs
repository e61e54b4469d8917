//! Replies by what the broker makes, across its two protocols, on each broker that the environment
//! names.

use std::{env, sync::Arc, time::Duration};

use futures_util::StreamExt;
use lapin::{
    BasicProperties, ConnectionProperties,
    options::{BasicConsumeOptions, BasicPublishOptions},
    types::FieldTable,
};
use postrider_core::{ErrorKind, ReplyMode, Transport};
use postrider_patterns::{CallOptions, Context, Naming, RpcClient, RpcServer, Running};
use postrider_transport_amqp10::Amqp10;
use postrider_transport_amqp091::Amqp091;
use serde_json::json;
use tokio::time::timeout;

/// How long something that must happen may take.
const SOON: Duration = Duration::from_secs(20);

/// What the address of a broker is called by, over AMQP 1.0 and 0.9.1.
const BROKERS: [[&str; 2]; 2] = [
    ["POSTRIDER_AMQP10_URL", "POSTRIDER_AMQP_URL"],
    ["POSTRIDER_AMQP10_URL_40", "POSTRIDER_AMQP_URL_40"],
];

/// The transports to a broker and their URLs, AMQP 1.0 first.
type Ways = ([Arc<dyn Transport>; 2], [String; 2]);

async fn brokers() -> Vec<Ways> {
    let mut brokers: Vec<Ways> = Vec::new();
    for variables in BROKERS {
        let [Ok(amqp10), Ok(amqp091)] = variables.map(env::var) else { continue };
        let new = Arc::new(Amqp10::connect(&amqp10).await.expect("a broker over AMQP 1.0"));
        let old = Arc::new(Amqp091::connect(&amqp091).await.expect("a broker over AMQP 0.9.1"));
        brokers.push(([new, old], [amqp10, amqp091]));
    }
    assert!(!brokers.is_empty(), "no broker; run eval \"$(scripts/brokers env)\" first");
    brokers
}

/// A service with queues of its own that says back what it hears.
async fn echo(transport: &Arc<dyn Transport>) -> (Running, Naming) {
    let naming = Naming::default().prefixed(&format!("replies-{}.", transport.env().new_id()));
    let server = RpcServer::new("echo")
        .naming(naming.clone())
        .method_named("say", |words: String, _: Context| async move { Ok(words) });
    (server.start(transport).await.expect("a server"), naming)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_either_protocol_answers_by_whatever_the_broker_makes() {
    for (serving, [url, _]) in brokers().await {
        let lightest = serving[0].capabilities().reply_mode;
        let mut servers = Vec::new();
        for serving in &serving {
            let (server, naming) = echo(serving).await;
            servers.push(server);
            for mode in [ReplyMode::Direct, ReplyMode::TemporaryQueue, ReplyMode::ExclusiveQueue] {
                let calling = Amqp10::connect(&url).await.expect("a caller's own connection");
                let calling: Arc<dyn Transport> = Arc::new(calling);
                let client = RpcClient::builder(&calling).naming(naming.clone());
                let client = match client.reply_mode(mode).connect().await {
                    Ok(client) => client,
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Unsupported, "{mode:?}: {error}");
                        assert_ne!(mode, lightest);
                        continue;
                    }
                };
                for words in ["hello", "again"] {
                    let options = CallOptions::default().with_timeout(SOON);
                    let heard = client.call_named("echo", "say", words, options).await;
                    let heard: String = heard.unwrap_or_else(|error| {
                        panic!("{mode:?} from {}: {error:?}", serving.url())
                    });
                    assert_eq!(heard, words);
                }
            }
        }
        for server in servers {
            server.stop(SOON).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direct_caller_over_amqp091_is_answered_over_amqp10() {
    for (transports, [_, url]) in brokers().await {
        // Before 4.2 the broker has no direct reply-to that both protocols know.
        if transports[0].capabilities().reply_mode != ReplyMode::Direct {
            continue;
        }
        let (server, naming) = echo(&transports[0]).await;
        let connection = lapin::Connection::connect(&url, ConnectionProperties::default());
        let connection = connection.await.expect("a connection over AMQP 0.9.1");
        let channel = connection.create_channel().await.expect("a channel");
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let (direct, tag) = ("amq.rabbitmq.reply-to", "");
        let replies =
            channel.basic_consume(direct.into(), tag.into(), options, FieldTable::default());
        let mut replies = replies.await.expect("a consumer of direct replies");
        let properties = BasicProperties::default()
            .with_reply_to(direct.into())
            .with_correlation_id("7".into())
            .with_content_type("application/json".into());
        let request = json!({ "method": "say", "params": "hello" }).to_string();
        let queue = naming.rpc_queue("echo");
        let publish = BasicPublishOptions::default();
        channel
            .basic_publish(
                "".into(),
                queue.as_str().into(),
                publish,
                request.as_bytes(),
                properties,
            )
            .await
            .expect("a request is sent");
        let reply = timeout(SOON, replies.next()).await.expect("a reply comes");
        let reply = reply.expect("the consumer goes on").expect("a reply");
        let body: serde_json::Value = serde_json::from_slice(&reply.data).expect("JSON");
        assert_eq!(body, json!({ "status": "success", "data": "hello" }));
        let id = reply.properties.correlation_id().as_ref().map(ToString::to_string);
        assert_eq!(id.as_deref(), Some("7"));
        server.stop(SOON).await;
        connection.close(200, "done".into()).await.expect("it closes");
    }
}
