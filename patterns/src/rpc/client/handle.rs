use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use serde::{Serialize, de::DeserializeOwned};
use tokio_util::task::AbortOnDropHandle;

use super::{CallOptions, RpcClient, of_type};
use crate::rpc::{Request, RpcError, wire};

/// A call that is under way, whether it is awaited or not.
///
/// Await it for the reply. Dropping it gives the call up, as dropping the future of
/// [`RpcClient::call`] does.
///
/// # Example: work while two calls are under way
///
/// ```
/// use std::sync::Arc;
/// use postrider_core::Transport;
/// use postrider_patterns::{CallOptions, RpcClient, RpcServer};
/// use postrider_transport_inmemory::InMemory;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let transport: Arc<dyn Transport> = Arc::new(InMemory::connect("memory://")?);
/// let _server = RpcServer::new("math")
///     .method_named("double", |number: u32, _context| async move { Ok(number * 2) })
///     .start(&transport)
///     .await?;
/// let client = RpcClient::new(&transport).await?;
/// let options = CallOptions::default;
/// let four = client.call_async_named::<_, u32>("math", "double", &2, options());
/// let six = client.call_async_named::<_, u32>("math", "double", &3, options());
/// assert_eq!((six.await?, four.await?), (6, 4));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "dropping it gives the call up"]
pub struct CallHandle<R>(State<R>);

#[derive(Debug)]
enum State<R> {
    UnderWay(AbortOnDropHandle<Result<R, RpcError>>),
    /// It could not be made.
    Failed(Option<RpcError>),
}

impl<R> CallHandle<R> {
    /// Whether it has ended, so that awaiting it gives its outcome at once.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        match &self.0 {
            State::UnderWay(task) => task.is_finished(),
            State::Failed(_) => true,
        }
    }

    /// Gives the call up. Awaiting it gives [`RpcError::Cancelled`] then, unless it had ended.
    pub fn cancel(&self) {
        if let State::UnderWay(task) = &self.0 {
            task.abort();
        }
    }
}

impl<R> Future for CallHandle<R> {
    type Output = Result<R, RpcError>;

    /// # Panics
    ///
    /// When it is polled again after it gave its outcome, and when reading the reply panicked.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            State::UnderWay(task) => Poll::Ready(match ready!(Pin::new(task).poll(cx)) {
                Ok(outcome) => outcome,
                Err(ended) if ended.is_cancelled() => Err(RpcError::Cancelled),
                Err(ended) => std::panic::resume_unwind(ended.into_panic()),
            }),
            State::Failed(error) => {
                Poll::Ready(Err(error.take().expect("a call gives its outcome once")))
            }
        }
    }
}

// Nothing in it is pinned; the reply is only ever moved out.
impl<R> Unpin for CallHandle<R> {}

impl RpcClient {
    /// Begins to call the method of `request` at `service`; else as [`call`](Self::call). What
    /// cannot be sent is told by the handle.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn call_async<R: Request>(&self, service: &str, request: &R) -> CallHandle<R::Reply> {
        self.call_async_with(service, request, CallOptions::default())
    }

    /// Begins to call with options; else as [`call_async`](Self::call_async).
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn call_async_with<R: Request>(
        &self,
        service: &str,
        request: &R,
        options: CallOptions,
    ) -> CallHandle<R::Reply> {
        self.call_async_named(service, R::METHOD, request, of_type::<R>(options))
    }

    /// Begins to call a method by its name; else as [`call_async`](Self::call_async).
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn call_async_named<P, R>(
        &self,
        service: &str,
        method: &str,
        params: &P,
        options: CallOptions,
    ) -> CallHandle<R>
    where
        P: Serialize + ?Sized,
        R: DeserializeOwned + Send + 'static,
    {
        let prepared = self.inner.call(service, method, &options).and_then(|call| {
            let request = self.inner.request(&call, params, &options)?;
            Ok((call.into_owned(), request))
        });
        let (call, request) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return CallHandle(State::Failed(Some(error))),
        };
        let inner = self.inner.clone();
        let task = tokio::spawn(async move {
            let reply = inner.exchange(&call, request, options.parent.as_ref()).await?;
            wire::decode_reply(&reply.message, inner.limits)
        });
        CallHandle(State::UnderWay(AbortOnDropHandle::new(task)))
    }
}
