//! What routing puts on the wire. A change here is a change for every client and service in every
//! language.

mod common;

use common::{hex, take, transport};
use postrider_core::{
    Address, Envelope, HeaderValue, Message, PublisherExt, PublisherOptions, Queue, Topology,
};
use postrider_patterns::{
    Codec, Naming, Request, codes, headers,
    routing::{
        Aggregator, Change, ChangeRules, Completion, Condition, Field, ListRules, Matching,
        Otherwise, Partitioner, Route, RoutingTable, Rule, Splitter, Value,
    },
};

const TABLE: &str = r#"{"version":3,"matching":"all","rules":[{"name":"large","when":{"all":[{"equals":["type","order"]},{"at_least":["body.order.total",100]}]},"to":[{"queue":"large"},{"exchange":{"name":"events","key":"order.large"}},{"exchange":{"name":"events"}},{"partition":{"to":{"queue":"lanes","count":4},"by":"key"}}]},{"name":"rest","when":"always","to":[{"queue":"rest"}]}],"otherwise":{"send":[{"queue":"other"}]}}"#;

fn table() -> RoutingTable {
    let large =
        Condition::is_type("order").and(Condition::at_least(Field::body("order.total"), 100));
    let lanes = Partitioner::new("lanes", 4).unwrap();
    let mut table = RoutingTable::default();
    table.version = 3;
    table.matching = Matching::All;
    table.rules = vec![
        Rule::new(
            "large",
            large,
            [
                Route::queue("large"),
                Route::exchange("events", "order.large"),
                Route::exchange_as_it_came("events"),
                Route::partition(lanes, Field::Key),
            ],
        ),
        Rule::new("rest", Condition::Always, [Route::queue("rest")]),
    ];
    table.otherwise = Otherwise::Send(vec![Route::queue("other")]);
    table
}

#[test]
fn a_table() {
    assert_eq!(serde_json::to_string(&table()).unwrap(), TABLE);
    assert_eq!(serde_json::from_str::<RoutingTable>(TABLE).unwrap(), table());
    let body = Codec::MessagePack.encode(&table()).unwrap();
    let read: RoutingTable = Codec::decode(Some("application/msgpack"), &body).unwrap();
    assert_eq!(read, table());
    let value: serde_json::Value = Codec::decode(Some("application/msgpack"), &body).unwrap();
    assert_eq!(value, serde_json::from_str::<serde_json::Value>(TABLE).unwrap());
    // What may be left out.
    assert_eq!(serde_json::from_str::<RoutingTable>("{}").unwrap(), RoutingTable::default());
    let default = r#"{"version":0,"matching":"first","rules":[],"otherwise":"dead_letter"}"#;
    assert_eq!(serde_json::to_string(&RoutingTable::default()).unwrap(), default);
    // What is misspelt is refused, not passed over.
    for wrong in [
        r#"{"rule":[]}"#,
        r#"{"rules":[{"name":"a","when":"always","to":[],"from":[]}]}"#,
        r#"{"otherwise":{"send":[{"exchange":{"name":"e","keey":"k"}}]}}"#,
        r#"{"otherwise":"forget"}"#,
        r#"{"rules":[{"name":"a","when":{"equal":["type","x"]},"to":[]}]}"#,
        r#"{"rules":[{"name":"a","when":{"equals":["typ","x"]},"to":[]}]}"#,
        r#"{"rules":[{"name":"a","when":{"equals":["type"]},"to":[]}]}"#,
    ] {
        assert!(serde_json::from_str::<RoutingTable>(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn conditions() {
    let field = || Field::header("h");
    let text = |condition: &Condition| serde_json::to_string(condition).unwrap();
    for (condition, json) in [
        (Condition::Always, r#""always""#),
        (Condition::Exists(field()), r#"{"exists":"header.h"}"#),
        (Condition::Equals(field(), Value::Null), r#"{"equals":["header.h",null]}"#),
        (
            Condition::OneOf(field(), vec![1.into(), "a".into()]),
            r#"{"one_of":["header.h",[1,"a"]]}"#,
        ),
        (Condition::AtMost(field(), 1.5.into()), r#"{"at_most":["header.h",1.5]}"#),
        (Condition::Below(field(), 1.into()), r#"{"below":["header.h",1]}"#),
        (Condition::AtLeast(field(), 1.into()), r#"{"at_least":["header.h",1]}"#),
        (Condition::Above(field(), 1.into()), r#"{"above":["header.h",1]}"#),
        (Condition::StartsWith(field(), "a".into()), r#"{"starts_with":["header.h","a"]}"#),
        (Condition::EndsWith(field(), "a".into()), r#"{"ends_with":["header.h","a"]}"#),
        (Condition::Contains(field(), "a".into()), r#"{"contains":["header.h","a"]}"#),
        (Condition::Matches(field(), "a.#".into()), r#"{"matches":["header.h","a.#"]}"#),
        (Condition::All(Vec::new()), r#"{"all":[]}"#),
        (Condition::Any(vec![Condition::Always]), r#"{"any":["always"]}"#),
        (Condition::Always.negated(), r#"{"not":"always"}"#),
    ] {
        assert_eq!(text(&condition), json);
        assert_eq!(serde_json::from_str::<Condition>(json).unwrap(), condition);
    }
}

#[test]
fn control_messages() {
    let rule = || Rule::new("a", Condition::Always, [Route::queue("q")]);
    let change = ChangeRules::new([
        Change::Add { rule: rule(), before: Some("b".to_owned()) },
        Change::Add { rule: rule(), before: None },
        Change::Replace(rule()),
        Change::Remove("c".to_owned()),
        Change::Otherwise(Otherwise::Drop),
    ])
    .if_version(7);
    let json = r#"{"changes":[{"add":{"rule":{"name":"a","when":"always","to":[{"queue":"q"}]},"before":"b"}},{"add":{"rule":{"name":"a","when":"always","to":[{"queue":"q"}]}}},{"replace":{"name":"a","when":"always","to":[{"queue":"q"}]}},{"remove":"c"},{"otherwise":"drop"}],"if_version":7}"#;
    assert_eq!(serde_json::to_string(&change).unwrap(), json);
    assert_eq!(serde_json::from_str::<ChangeRules>(json).unwrap(), change);
    let any = ChangeRules::new([Change::Remove("c".to_owned())]);
    let short = r#"{"changes":[{"remove":"c"}]}"#;
    assert_eq!(serde_json::from_str::<ChangeRules>(short).unwrap(), any);
    let body = Codec::MessagePack.encode(&any).unwrap();
    assert_eq!(hex(&body), "82a76368616e6765739181a672656d6f7665a163aa69665f76657273696f6ec0");
    assert_eq!(serde_json::to_string(&ListRules {}).unwrap(), "{}");
    assert_eq!((ChangeRules::METHOD, ListRules::METHOD), ("change_rules", "list_rules"));
}

#[tokio::test(start_paused = true)]
async fn a_part_and_what_is_made_of_parts() {
    let transport = transport();
    let topology = Topology::new().queue(Queue::durable("seen")).queue(Queue::durable("whole"));
    transport.declare(&topology).await.unwrap();
    let splitter = Splitter::list("orders", Field::body("lines"), Route::queue("seen"));
    let _splitter = splitter.start(&transport).await.unwrap();
    let aggregator = Aggregator::new("parts", Completion::Parts, Route::queue("whole"));
    let _aggregator = aggregator.start(&transport).await.unwrap();
    let order = Message::new(r#"{"lines":[{"sku":"a"},7]}"#)
        .with_content_type("application/json")
        .with_message_id("order-1");
    let publisher = transport.publisher(PublisherOptions::default()).await.unwrap();
    publisher.publish(Envelope::new(Address::queue("orders"), order)).await.unwrap();
    for (number, (body, id)) in [
        (r#"{"sku":"a"}"#, "87beeb8a-e8f5-87a3-b686-afe7a0ee2744"),
        ("7", "d450068b-85d5-8095-867d-da0562a719fa"),
    ]
    .into_iter()
    .enumerate()
    {
        let part = take(&*transport, "seen").await;
        assert_eq!(part.body, body);
        assert_eq!(part.message_id.as_deref(), Some(id));
        assert_eq!(part.causation_id.as_deref(), Some("order-1"));
        assert_eq!(part.correlation_id.as_deref(), Some("order-1"));
        let headers: Vec<_> =
            part.headers.iter().map(|(name, value)| (name, value.clone())).collect();
        assert_eq!(
            headers,
            [
                ("postrider-part-of", HeaderValue::from("order-1")),
                ("postrider-part-from", HeaderValue::from("orders")),
                ("postrider-part", HeaderValue::Int(number as i64)),
                ("postrider-parts", HeaderValue::Int(2)),
                ("postrider-hops", HeaderValue::Int(1)),
            ]
        );
        publisher.publish(Envelope::new(Address::queue("parts"), part)).await.unwrap();
    }
    let whole = take(&*transport, "whole").await;
    assert_eq!(whole.body, r#"[{"sku":"a"},7]"#);
    assert_eq!(whole.message_id.as_deref(), Some("c167d5be-7125-8943-b0f4-88c373dc45a8"));
    assert_eq!(whole.correlation_id.as_deref(), Some("order-1"));
}

#[test]
fn partitions() {
    let naming = Naming::default();
    assert_eq!(naming.partition_queue("orders", 3), "orders.partition.3");
    let of = |count| {
        let partitioner = Partitioner::new("q", count).unwrap();
        ["", "a", "customer-4", "ä", "0123456789"].map(|key| partitioner.partition(key))
    };
    assert_eq!(of(1), [0; 5]);
    assert_eq!(of(4), [0, 1, 2, 3, 1]);
    assert_eq!(of(16), [11, 9, 2, 3, 5]);
    assert_eq!(of(1_000), [978, 572, 2, 176, 17]);
}

#[test]
fn names_of_headers_and_codes() {
    assert_eq!(
        [
            headers::HOPS,
            headers::PART_OF,
            headers::PART_FROM,
            headers::PART,
            headers::PARTS,
            headers::INCOMPLETE,
        ],
        [
            "postrider-hops",
            "postrider-part-of",
            "postrider-part-from",
            "postrider-part",
            "postrider-parts",
            "postrider-incomplete",
        ]
    );
    assert_eq!(
        [
            codes::NO_ROUTE,
            codes::TOO_MANY_HOPS,
            codes::NO_KEY,
            codes::NO_ID,
            codes::TOO_MANY_PARTS,
            codes::INCOMPLETE,
        ],
        ["NO_ROUTE", "TOO_MANY_HOPS", "NO_KEY", "NO_ID", "TOO_MANY_PARTS", "INCOMPLETE"]
    );
}
