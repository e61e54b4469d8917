//! The bodies of requests and replies.

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use postrider_core::{HeaderValue, Message};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{RejectionDetail, RpcError};
use crate::{
    codec::{Codec, CodecError, Limits, read_or_default},
    handler::{ErrorClass, HandlerError},
    headers, wire_time,
};

#[derive(Serialize)]
struct RequestBody<'a, P: ?Sized> {
    method: &'a str,
    params: &'a P,
    timestamp: String,
}

pub(super) fn encode_request<P: Serialize + ?Sized>(
    codec: Codec,
    limits: Limits,
    method: &str,
    params: &P,
    timestamp: DateTime<Utc>,
) -> Result<Bytes, CodecError> {
    let timestamp = wire_time::text(timestamp);
    codec.encode_within(&RequestBody { method, params, timestamp }, limits)
}

/// What must be readable of a request before its parameters are. The timestamp is for people and
/// may be of any type.
#[derive(Deserialize)]
pub(super) struct RequestHead<'a> {
    #[serde(borrow)]
    pub(super) method: Cow<'a, str>,
}

#[derive(Deserialize)]
struct RequestParams<P> {
    params: Option<P>,
}

/// The parameters of a request; left out, they are those of a method that takes none.
pub(super) fn decode_params<P: DeserializeOwned>(
    codec: Codec,
    limits: Limits,
    body: &[u8],
) -> Result<P, CodecError> {
    let body: RequestParams<P> = codec.read(body, limits)?;
    read_or_default(body.params)
}

#[derive(Serialize)]
struct Success<'a, R> {
    status: &'a str,
    data: &'a R,
}

pub(super) fn encode_success<R: Serialize>(
    codec: Codec,
    limits: Limits,
    data: &R,
) -> Result<Bytes, CodecError> {
    let status = "success";
    codec.encode_within(&Success { status, data }, limits)
}

#[derive(Serialize)]
struct Failure<'a> {
    status: &'a str,
    message: &'a str,
    code: &'a str,
}

pub(super) fn encode_error(
    codec: Codec,
    limits: Limits,
    code: &str,
    message: &str,
) -> Result<Bytes, CodecError> {
    let status = "error";
    codec.encode_within(&Failure { status, message, code }, limits)
}

/// Adds what the body of an error reply has no place for.
pub(super) fn mark_error(mut message: Message, codec: Codec, error: &HandlerError) -> Message {
    message.headers.set(headers::ERROR_CLASS, error.class().as_str());
    match error.detail().map(|detail| detail.header(codec)) {
        Some(Ok(detail)) => message.headers.set(headers::ERROR_DETAIL, detail),
        Some(Err(failed)) => {
            tracing::error!(%error, %failed, "a domain error goes without what it holds");
        }
        None => {}
    }
    match error.retry_after() {
        Some(time) => {
            let millis = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
            message.with_header(headers::RETRY_AFTER_MS, millis)
        }
        None => message,
    }
}

#[derive(Deserialize)]
struct ReplyHead<'a> {
    #[serde(borrow)]
    status: Cow<'a, str>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    code: Option<Code>,
}

/// Services in other languages also send numbers.
#[derive(Deserialize)]
#[serde(untagged)]
enum Code {
    Text(String),
    Number(i64),
}

#[derive(Deserialize)]
struct ReplyData<R> {
    data: Option<R>,
}

/// The data of a reply, or the error that it tells.
pub(super) fn decode_reply<R: DeserializeOwned>(
    message: &Message,
    limits: Limits,
) -> Result<R, RpcError> {
    let codec = Codec::of(message.content_type.as_deref(), &message.body)?;
    let head: ReplyHead<'_> = codec.read(&message.body, limits)?;
    match &*head.status {
        "success" => {
            let body: ReplyData<R> = codec.read(&message.body, limits)?;
            Ok(read_or_default(body.data)?)
        }
        "error" => Err(reply_error(message, codec, head)),
        other => Err(RpcError::Failed {
            class: ErrorClass::Unknown,
            code: ErrorClass::Unknown.as_str().to_owned(),
            message: format!("the reply has the status '{other}', not success or error"),
            retry_after: None,
        }),
    }
}

/// The class stands in a header. A plain service sends none: its code may be that of a class, and
/// else it is one of its domain.
fn reply_error(reply: &Message, codec: Codec, head: ReplyHead<'_>) -> RpcError {
    let message = head.message.unwrap_or_default();
    let code = match head.code {
        Some(Code::Text(code)) => Some(code),
        Some(Code::Number(number)) => Some(number.to_string()),
        None => None,
    };
    let class = reply
        .headers
        .get(headers::ERROR_CLASS)
        .and_then(HeaderValue::as_text)
        .or(code.as_deref())
        .map_or(Ok(ErrorClass::Unknown), str::parse)
        .unwrap_or(ErrorClass::Rejected);
    let code = code.unwrap_or_else(|| class.as_str().to_owned());
    if class == ErrorClass::Rejected {
        let detail = reply.headers.get(headers::ERROR_DETAIL);
        let detail = detail.and_then(|detail| RejectionDetail::of(codec, detail));
        return RpcError::Rejected { code, message, detail };
    }
    let retry_after = reply
        .headers
        .get(headers::RETRY_AFTER_MS)
        .and_then(HeaderValue::as_int)
        .and_then(|millis| u64::try_from(millis).ok())
        .map(Duration::from_millis);
    RpcError::Failed { class, code, message, retry_after }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(body: &'static str) -> Message {
        Message::new(body)
    }

    #[test]
    fn replies_of_plain_services_are_understood() {
        let decode = |body| decode_reply::<u32>(&reply(body), Limits::default());
        assert_eq!(decode(r#"{"status":"success","data":7}"#).unwrap(), 7);
        let unit = reply(r#"{"status":"success"}"#);
        decode_reply::<()>(&unit, Limits::default()).unwrap();
        assert!(matches!(
            decode(r#"{"status":"error","message":"no","code":404}"#),
            Err(RpcError::Rejected { code, .. }) if code == "404"
        ));
        assert!(matches!(
            decode(r#"{"status":"error","message":"later","code":"TRANSIENT"}"#),
            Err(RpcError::Failed { class: ErrorClass::Transient, .. })
        ));
        assert!(matches!(
            decode(r#"{"status":"error","message":"no"}"#),
            Err(RpcError::Failed { class: ErrorClass::Unknown, .. })
        ));
        assert!(matches!(
            decode(r#"{"status":"success","data":"seven"}"#),
            Err(RpcError::Codec(_))
        ));
        assert!(matches!(decode(r#"{"status":"odd"}"#), Err(RpcError::Failed { .. })));
    }

    #[test]
    fn the_class_and_the_wait_travel_in_headers() {
        let error = HandlerError::throttled("full", Duration::from_millis(1_500));
        let body = encode_error(Codec::Json, Limits::default(), "QUOTA", "full").unwrap();
        let message = mark_error(Message::new(body), Codec::Json, &error);
        let decoded = decode_reply::<u32>(&message, Limits::default()).unwrap_err();
        assert_eq!(decoded.class(), ErrorClass::Throttled);
        assert_eq!(decoded.code(), "QUOTA");
        assert_eq!(decoded.retry_after(), Some(Duration::from_millis(1_500)));
    }

    #[test]
    fn parameters_may_be_left_out_where_a_method_takes_none() {
        #[derive(Deserialize)]
        struct None {}
        let limits = Limits::default();
        for body in [r#"{"method":"m"}"#, r#"{"method":"m","params":null}"#] {
            let body = body.as_bytes();
            decode_params::<()>(Codec::Json, limits, body).unwrap();
            decode_params::<None>(Codec::Json, limits, body).unwrap();
            assert!(decode_params::<u32>(Codec::Json, limits, body).is_err());
        }
    }
}
