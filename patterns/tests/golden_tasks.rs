//! What tracked tasks put on the wire. A change here is a change for every submitter and worker in
//! every language.

mod common;

use common::{BOTH, assert_body, declare_queue, deliver, publish, take, text, transport};
use postrider_core::{Address, Binding, Exchange, Message, Queue, Topology};
use postrider_patterns::{
    Codec, Context, HandlerError, Naming, SubmitOptions, Task, TaskWithResult, WorkQueue, Worker,
    codes, headers,
};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Print {
    file: String,
}

impl Task for Print {
    const TYPE: &'static str = "print";
}

#[derive(Serialize, Deserialize)]
struct Printed {
    pages: u32,
}

impl TaskWithResult for Print {
    type Output = Printed;
}

#[test]
fn names() {
    let naming = Naming::default();
    assert_eq!(naming.task_exchange("print"), "print.control");
    assert_eq!(naming.task_instance_queue("print", "1"), "print.control.1");
    assert_eq!(naming.prefixed("a.").task_exchange("print"), "a.print.control");
    assert_eq!(headers::UNIQUE_KEY, "postrider-unique-key");
    assert_eq!(codes::RESULT_UNSENDABLE, "RESULT_UNSENDABLE");
}

#[tokio::test(start_paused = true)]
async fn a_tracked_task() {
    let transport = transport();
    let tasks = WorkQueue::builder(&transport).codec(Codec::Json).connect().await.unwrap();
    let print = Print { file: "a.txt".to_owned() };
    let options = SubmitOptions::default().unique("a.txt");
    let handle = tasks.submit_tracked(&print, options).await.unwrap();
    let task = take(&*transport, "print").await;
    assert_eq!(
        task.body,
        r#"{"type":"print","params":{"file":"a.txt"},"timestamp":"2026-01-01T00:00:00.000Z","priority":4}"#
    );
    assert_eq!(task.message_id.as_deref(), Some(handle.id().as_str()));
    assert!(task.reply_to.as_ref().unwrap().starts_with("reply_tasks_"));
    assert_eq!(text(&task, "postrider-unique-key"), Some("a.txt"));
    assert_eq!(task.headers.len(), 1);
}

/// The reports of a task that a plain client submits.
async fn reports(codec: Codec, file: &str, number: usize) -> Vec<Message> {
    let transport = transport();
    let worker = Worker::new("print").on_result(|print: Print, context: Context| async move {
        context.progress(0.5, "half");
        if print.file == "long.txt" {
            return Err(HandlerError::rejected("NO_PAPER", "the printer is empty"));
        }
        Ok(Printed { pages: 3 })
    });
    let _running = worker.start(&transport).await.unwrap();
    declare_queue(&*transport, Queue::exclusive("mine")).await;
    let body = serde_json::json!({"type": "print", "params": {"file": file}});
    let task = Message::new(codec.encode(&body).unwrap())
        .with_content_type(codec.content_type())
        .with_message_id("task-1")
        .with_reply_to("mine");
    publish(&*transport, Address::queue("print"), task).await;
    let mut reports = Vec::new();
    for _ in 0..number {
        let report = take(&*transport, "mine").await;
        assert_eq!(report.correlation_id.as_deref(), Some("task-1"));
        assert_eq!(report.message_type.as_deref(), Some("postrider.task.report"));
        assert!(!report.durable);
        assert!(report.headers.is_empty());
        reports.push(report);
    }
    // What may be lost goes another way than the end, and may come after it.
    reports.sort_by_key(|report| report.body.len());
    reports
}

#[tokio::test(start_paused = true)]
async fn reports_of_a_task_that_is_done() {
    for codec in BOTH {
        let reports = reports(codec, "a.txt", 3).await;
        assert_body(
            &reports[0],
            codec,
            r#"{"state":"running","attempt":1}"#,
            "82a57374617465a772756e6e696e67a7617474656d707401",
        );
        assert_body(
            &reports[1],
            codec,
            r#"{"state":"done","attempt":1,"result":{"pages":3}}"#,
            "83a57374617465a4646f6e65a7617474656d707401a6726573756c7481a570616765\
             7303",
        );
        assert_body(
            &reports[2],
            codec,
            r#"{"state":"progress","attempt":1,"progress":0.5,"message":"half"}"#,
            "84a57374617465a870726f6772657373a7617474656d707401a870726f6772657373\
             cb3fe0000000000000a76d657373616765a468616c66",
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_report_of_a_task_that_has_failed() {
    for codec in BOTH {
        let reports = reports(codec, "long.txt", 3).await;
        assert_body(
            &reports[2],
            codec,
            r#"{"state":"failed","attempt":1,"error":{"class":"REJECTED","code":"NO_PAPER","message":"the printer is empty"}}"#,
            "83a57374617465a66661696c6564a7617474656d707401a56572726f7283a5636c61\
             7373a852454a4543544544a4636f6465a84e4f5f5041504552a76d657373616765b4\
             746865207072696e74657220697320656d707479",
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_called_off() {
    let transport = transport();
    let tasks = WorkQueue::new(&transport).await.unwrap();
    let topology = Topology::new()
        .exchange(Exchange::fanout("print.control"))
        .queue(Queue::exclusive("mine"))
        .bind(Binding::queue("print.control", "mine", ""));
    transport.declare(&topology).await.unwrap();
    let print = Print { file: "a.txt".to_owned() };
    let id = tasks.submit(&print).await.unwrap();
    assert!(tasks.cancel::<Print>(&id).await.unwrap());
    let told = deliver(&*transport, "mine").await;
    let told = told.message();
    assert_eq!(told.message_type.as_deref(), Some("postrider.task.cancel"));
    assert_eq!(told.correlation_id.as_deref(), Some(id.as_str()));
    assert!(told.body.is_empty() && !told.durable);
    assert_eq!(told.ttl, Some(60 * common::SECOND));
}
