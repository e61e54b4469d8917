//! A method: from the parameters on the wire to the replies on the wire.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, future::BoxFuture, stream::BoxStream};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    codec::{Codec, Limits},
    handler::{Context, HandlerError, codes},
    rpc::wire,
};

/// The bodies of a streamed reply.
pub(super) type Items = BoxStream<'static, Result<Bytes, HandlerError>>;

/// What a method gives back.
pub(super) enum Answer {
    Once(Bytes),
    Stream(Items),
}

type Run = dyn Fn(Codec, Limits, Context) -> BoxFuture<'static, Result<Answer, HandlerError>>
    + Send
    + Sync;

/// One of the methods of a service.
#[derive(Clone)]
pub(super) struct Method {
    run: Arc<Run>,
    pub(super) streams: bool,
    pub(super) idempotent: bool,
}

impl Method {
    /// A method that answers once.
    pub(super) fn once<P, R, F, Fut>(handler: F) -> Self
    where
        P: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
        F: Fn(P, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let run = move |codec, limits, context: Context| {
            let handler = Arc::clone(&handler);
            let run = async move {
                let params = params(codec, limits, &context)?;
                let reply = handler(params, context).await?;
                encode(codec, limits, &reply).map(Answer::Once)
            };
            Box::pin(run) as BoxFuture<'static, _>
        };
        Self { run: Arc::new(run), streams: false, idempotent: false }
    }

    /// A method that answers by a stream of items.
    pub(super) fn stream<P, R, S, F, Fut>(handler: F) -> Self
    where
        P: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
        S: Stream<Item = Result<R, HandlerError>> + Send + 'static,
        F: Fn(P, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<S, HandlerError>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let run = move |codec, limits, context: Context| {
            let handler = Arc::clone(&handler);
            let run = async move {
                let params = params(codec, limits, &context)?;
                let items = handler(params, context).await?;
                let bodies = items.map(move |item| encode(codec, limits, &item?));
                Ok(Answer::Stream(bodies.boxed()))
            };
            Box::pin(run) as BoxFuture<'static, _>
        };
        Self { run: Arc::new(run), streams: true, idempotent: false }
    }

    pub(super) fn run(
        &self,
        codec: Codec,
        limits: Limits,
        context: Context,
    ) -> BoxFuture<'static, Result<Answer, HandlerError>> {
        (self.run)(codec, limits, context)
    }
}

impl fmt::Debug for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Method")
            .field("streams", &self.streams)
            .field("idempotent", &self.idempotent)
            .finish_non_exhaustive()
    }
}

fn params<P: DeserializeOwned>(
    codec: Codec,
    limits: Limits,
    context: &Context,
) -> Result<P, HandlerError> {
    wire::decode_params(codec, limits, &context.message().body)
        .map_err(|error| HandlerError::undecodable(&error).with_code(codes::INVALID_PARAMS))
}

fn encode<R: Serialize>(codec: Codec, limits: Limits, reply: &R) -> Result<Bytes, HandlerError> {
    wire::encode_success(codec, limits, reply)
        .map_err(|error| HandlerError::internal(error.to_string()))
}
