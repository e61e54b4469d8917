//! The frames of streams, byte for byte. A change here is a change for every client in every language.

mod common;

use bytes::Bytes;
use common::{BOTH, assert_body, declare_queue, hex, take, transport};
use postrider_core::{Address, HeaderValue, Message, Queue};
use postrider_patterns::{
    ContentHash, HandlerError, Incoming, Outgoing, StreamReceiver, StreamSender,
};
use serde_json::{Value, json};

const ID: uuid::Uuid = uuid::Uuid::from_u128(7);

/// Compares what all frames have.
fn assert_frame(frame: &Message, kind: &str) {
    assert_eq!(frame.message_type.as_deref(), Some(kind));
    assert_eq!(frame.correlation_id.as_deref(), Some("00000000-0000-0000-0000-000000000007"));
    assert!(!frame.durable);
}

/// What a stream's sender says: to the queue of offers, then to the queue of its receiver.
#[tokio::test(start_paused = true)]
async fn the_sender_of_a_stream() {
    for codec in BOTH {
        let transport = transport();
        declare_queue(&*transport, Queue::classic("stream_archive")).await;
        declare_queue(&*transport, Queue::exclusive("mine")).await;
        let sender = StreamSender::builder(&transport).codec(codec).chunk_size(4);
        let sender = sender.connect().await.unwrap();
        let (mut source, reader) = tokio::io::duplex(64);
        let outgoing = Outgoing::reader(reader)
            .with_id(ID)
            .with_length(6)
            .with_name("a.txt")
            .with_content_type("text/plain")
            .with_metadata("day", "1");
        let mut transfer = sender.start("archive", outgoing).unwrap();

        let open = take(&*transport, "stream_archive").await;
        assert_frame(&open, "stream.open");
        assert_body(
            &open,
            codec,
            r#"{"chunk_size":4,"length":6,"name":"a.txt","content_type":"text/plain","metadata":{"day":"1"},"resumable":false}"#,
            "86aa6368756e6b5f73697a6504a66c656e67746806a46e616d65a5612e747874ac636f6e\
             74656e745f74797065aa746578742f706c61696ea86d6574616461746181a3646179a131\
             a9726573756d61626c65c2",
        );
        assert_eq!(open.ttl, Some(30 * common::SECOND));
        let reply_to = open.reply_to.clone().unwrap();
        assert!(reply_to.starts_with("reply_sender_"));
        let answer = async |kind, body| {
            let answer = Message::new(codec.encode(&body).unwrap())
                .with_content_type(codec.content_type())
                .with_type(kind)
                .with_correlation_id(ID.to_string())
                .with_reply_to("mine");
            common::publish(&*transport, Address::queue(reply_to.to_string()), answer).await;
        };
        answer("stream.credit", json!({"received": 0, "until": 16})).await;

        tokio::io::AsyncWriteExt::write_all(&mut source, b"abcd").await.unwrap();
        let chunk = take(&*transport, "mine").await;
        assert_frame(&chunk, "stream.chunk");
        assert_eq!(chunk.content_type.as_deref(), Some("application/octet-stream"));
        assert_eq!(&*chunk.body, b"abcd");
        let headers: Vec<_> = chunk.headers.iter().collect();
        assert_eq!(
            headers,
            [
                ("postrider-stream-seq", &HeaderValue::Int(0)),
                ("postrider-stream-offset", &HeaderValue::Int(0)),
                ("postrider-stream-crc32c", &HeaderValue::Int(0x92c8_0a31)),
            ]
        );
        // It has nothing to say for two seconds.
        let alive = take(&*transport, "mine").await;
        assert_frame(&alive, "stream.alive");
        assert_body(&alive, codec, r#"{"sent":1}"#, "81a473656e7401");

        tokio::io::AsyncWriteExt::write_all(&mut source, b"ef").await.unwrap();
        drop(source);
        let chunk = take(&*transport, "mine").await;
        assert_eq!(&*chunk.body, b"ef");
        assert_eq!(chunk.headers.get("postrider-stream-seq"), Some(&HeaderValue::Int(1)));
        assert_eq!(chunk.headers.get("postrider-stream-offset"), Some(&HeaderValue::Int(4)));
        let close = take(&*transport, "mine").await;
        assert_frame(&close, "stream.close");
        let hash = ContentHash::of(b"abcdef");
        let json = format!(r#"{{"chunks":2,"length":6,"blake3":"{hash}"}}"#);
        let msgpack = format!(
            "83a66368756e6b7302a66c656e67746806a6626c616b6533d940{}",
            hex(hash.to_string().as_bytes())
        );
        assert_body(&close, codec, &json, &msgpack);

        answer("stream.done", json!({"length": 6, "blake3": hash.to_string()})).await;
        assert_eq!(transfer.finish().await.unwrap().hash, hash);
        let bye = take(&*transport, "mine").await;
        assert_frame(&bye, "stream.bye");
        assert!(bye.body.is_empty() && bye.content_type.is_none());

        let outgoing = Outgoing::seekable(std::io::Cursor::new("never")).with_id(ID);
        let mut transfer = sender.start("archive", outgoing).unwrap();
        let open = take(&*transport, "stream_archive").await;
        assert_body(
            &open,
            codec,
            r#"{"chunk_size":4,"length":null,"name":null,"content_type":null,"metadata":{},"resumable":true}"#,
            "86aa6368756e6b5f73697a6504a66c656e677468c0a46e616d65c0ac636f6e74656e745f\
             74797065c0a86d6574616461746180a9726573756d61626c65c3",
        );
        answer("stream.credit", json!({"received": 0, "until": 0})).await;
        tokio::task::yield_now().await;
        transfer.abort("no more");
        assert!(transfer.finish().await.is_err());
        let abort = take(&*transport, "mine").await;
        assert_frame(&abort, "stream.abort");
        assert_body(
            &abort,
            codec,
            r#"{"code":"ABORTED","reason":"the stream was aborted: no more"}"#,
            "82a4636f6465a741424f52544544a6726561736f6ebf7468652073747265616d20776173\
             2061626f727465643a206e6f206d6f7265",
        );
    }
}

/// What a stream's receiver says, to the queue that the offer names.
#[tokio::test(start_paused = true)]
async fn the_receiver_of_a_stream() {
    for codec in BOTH {
        let transport = transport();
        declare_queue(&*transport, Queue::exclusive("mine")).await;
        let _receiver = StreamReceiver::new("archive")
            .on(|mut incoming: Incoming, _| async move {
                if incoming.name() == Some("secret") {
                    return Err(HandlerError::rejected("NO_SECRETS", "we keep none"));
                }
                tokio::io::copy(&mut incoming, &mut tokio::io::sink()).await?;
                Ok(())
            })
            .start(&transport)
            .await
            .unwrap();
        let say = async |to: &str, kind, body: Value| {
            let frame = Message::new(codec.encode(&body).unwrap())
                .with_content_type(codec.content_type())
                .with_type(kind)
                .with_correlation_id(ID.to_string())
                .with_reply_to("mine");
            common::publish(&*transport, Address::queue(to.to_owned()), frame).await;
        };
        say("stream_archive", "stream.open", json!({"chunk_size": 4, "length": null})).await;
        let taken = take(&*transport, "mine").await;
        assert_frame(&taken, "stream.credit");
        assert_body(
            &taken,
            codec,
            r#"{"received":0,"until":0,"missing":[]}"#,
            "83a8726563656976656400a5756e74696c00a76d697373696e6790",
        );
        let queue = taken.reply_to.clone().unwrap();
        assert!(queue.starts_with("stream_archive_"));
        let credit = take(&*transport, "mine").await;
        assert_frame(&credit, "stream.credit");
        assert_body(
            &credit,
            codec,
            r#"{"received":0,"until":16,"missing":[]}"#,
            "83a8726563656976656400a5756e74696c10a76d697373696e6790",
        );

        let chunk = async |seq: i64, body: &'static [u8]| {
            let chunk = Message::new(Bytes::from_static(body))
                .with_type("stream.chunk")
                .with_correlation_id(ID.to_string())
                .with_header("postrider-stream-seq", seq)
                .with_header("postrider-stream-offset", 4 * seq)
                .with_header("postrider-stream-crc32c", i64::from(crc32c::crc32c(body)));
            common::publish(&*transport, Address::queue(queue.to_string()), chunk).await;
        };
        chunk(1, b"ef").await;
        let missing = take(&*transport, "mine").await;
        assert_body(
            &missing,
            codec,
            r#"{"received":0,"until":16,"missing":[[0,1]]}"#,
            "83a8726563656976656400a5756e74696c10a76d697373696e6791920001",
        );
        chunk(0, b"abcd").await;
        let hash = ContentHash::of(b"abcdef");
        let close = json!({"chunks": 2, "length": 6, "blake3": hash.to_string()});
        say(&queue, "stream.close", close).await;
        let done = take(&*transport, "mine").await;
        assert_frame(&done, "stream.done");
        let json = format!(r#"{{"length":6,"blake3":"{hash}"}}"#);
        let msgpack =
            format!("82a66c656e67746806a6626c616b6533d940{}", hex(hash.to_string().as_bytes()));
        assert_body(&done, codec, &json, &msgpack);
        say(&queue, "stream.bye", Value::Null).await;

        let secret = json!({"chunk_size": 4, "length": null, "name": "secret"});
        say("stream_archive", "stream.open", secret).await;
        let fail = loop {
            let frame = take(&*transport, "mine").await;
            if frame.message_type.as_deref() != Some("stream.credit") {
                break frame;
            }
        };
        assert_frame(&fail, "stream.fail");
        assert_body(
            &fail,
            codec,
            r#"{"code":"NO_SECRETS","class":"REJECTED","message":"we keep none","again":false}"#,
            "84a4636f6465aa4e4f5f53454352455453a5636c617373a852454a4543544544a76d6573\
             73616765ac7765206b656570206e6f6e65a5616761696ec2",
        );
    }
}
