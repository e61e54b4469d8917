//! The table of a router, changed by messages while it runs.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{FutureExt, future::BoxFuture};
use postrider_core::Transport;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex as AsyncMutex, watch};

use super::{
    change::Change,
    table::{MAX_TABLE_BYTES, RoutingTable},
};
use crate::{
    codec::Limits,
    consuming::Running,
    handler::{ErrorClass, HandlerError},
    naming::Naming,
    rpc::{Request, RpcServer},
};

/// Changes the rules of a router that is [controlled](super::Router::controlled): all of the
/// changes or, when one of them is refused, none. The reply is the version of the new table, or an
/// error with the reason.
///
/// A router that stands several times has as many tables. [`RpcClient::gather`](crate::RpcClient)
/// tells all of them, [`call`](crate::RpcClient::call) one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeRules {
    /// What is changed, in this order.
    pub changes: Vec<Change>,
    /// The version of the table that is meant. At another one the changes are refused, with the
    /// class [`Conflict`](ErrorClass::Conflict). `None` for any.
    #[serde(default)]
    pub if_version: Option<u64>,
}

impl ChangeRules {
    /// Changes to whatever table there is.
    #[must_use]
    pub fn new(changes: impl IntoIterator<Item = Change>) -> Self {
        Self { changes: changes.into_iter().collect(), if_version: None }
    }

    /// Sets [`if_version`](Self::if_version).
    #[must_use]
    pub const fn if_version(mut self, version: u64) -> Self {
        self.if_version = Some(version);
        self
    }
}

impl Request for ChangeRules {
    const METHOD: &'static str = "change_rules";
    // Who sends it again because the reply was lost gets that reply, and no second change.
    const IDEMPOTENT: bool = true;
    type Reply = RulesChanged;
}

/// The reply to [`ChangeRules`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RulesChanged {
    /// The version of the table now.
    pub version: u64,
}

/// Asks a router that is [controlled](super::Router::controlled) for its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ListRules {}

impl Request for ListRules {
    const METHOD: &'static str = "list_rules";
    type Reply = RoutingTable;
}

/// Keeps the tables of routers, so that they are there after a restart.
pub trait TableStore: fmt::Debug + Send + Sync + 'static {
    /// The table that was saved last under this name; `None` when there is none.
    ///
    /// # Errors
    ///
    /// When it cannot tell; the router does not start.
    fn load<'a>(
        &'a self,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<RoutingTable>, HandlerError>>;

    /// Saves a table. It becomes the router's when this has returned.
    ///
    /// # Errors
    ///
    /// When it cannot; whoever wanted the change is told, and the router keeps the table it has.
    fn save<'a>(
        &'a self,
        name: &'a str,
        table: &'a RoutingTable,
    ) -> BoxFuture<'a, Result<(), HandlerError>>;
}

/// A [`TableStore`] that lasts as long as its process.
#[derive(Debug, Default)]
pub struct InMemoryTables(Mutex<HashMap<String, RoutingTable>>);

impl TableStore for InMemoryTables {
    fn load<'a>(
        &'a self,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<RoutingTable>, HandlerError>> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        async { Ok(table) }.boxed()
    }

    fn save<'a>(
        &'a self,
        name: &'a str,
        table: &'a RoutingTable,
    ) -> BoxFuture<'a, Result<(), HandlerError>> {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tables.insert(name.to_owned(), table.clone());
        async { Ok(()) }.boxed()
    }
}

/// How large a request to change a table may be, and a list of its rules: numbers can take more
/// than twice the bytes in MessagePack that they have as JSON.
const MAX_REQUEST_BYTES: usize = 4 * MAX_TABLE_BYTES;

/// The server by which a table is changed, without its methods.
pub(super) fn server(service: &str, naming: &Naming) -> RpcServer {
    let limits = Limits::default().with_max_body_bytes(MAX_REQUEST_BYTES);
    RpcServer::new(service).naming(naming.clone()).limits(limits)
}

/// The one who changes a table.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) service: String,
    pub(super) store: Option<Arc<dyn TableStore>>,
    pub(super) table: watch::Sender<Arc<RoutingTable>>,
    /// One change at a time, saving included.
    pub(super) turn: AsyncMutex<()>,
}

impl Control {
    async fn change(&self, request: ChangeRules) -> Result<RulesChanged, HandlerError> {
        let _turn = self.turn.lock().await;
        let current = Arc::clone(&self.table.borrow());
        if request.if_version.is_some_and(|meant| meant != current.version) {
            let why = format!("the table has version {}; list it and try again", current.version);
            return Err(HandlerError::new(ErrorClass::Conflict, why));
        }
        // What a sender asks for is not to be tried again, whatever is wrong with it.
        let next = current.changed(request.changes);
        let next = next.map_err(|error| HandlerError::invalid(error.to_string()))?;
        if let Some(store) = &self.store {
            store.save(&self.service, &next).await?;
        }
        let version = next.version;
        tracing::info!(router = self.service, version, "the routing table was changed");
        self.table.send_replace(Arc::new(next));
        Ok(RulesChanged { version })
    }

    pub(super) async fn start(
        self,
        transport: &Arc<dyn Transport>,
        naming: &Naming,
    ) -> postrider_core::Result<Running> {
        let server = server(&self.service, naming);
        let listing = self.table.subscribe();
        let changing = Arc::new(self);
        server
            .method(move |request: ChangeRules, _context| {
                let control = Arc::clone(&changing);
                async move { control.change(request).await }
            })
            .method(move |_: ListRules, _context| {
                let table = RoutingTable::clone(&listing.borrow());
                async move { Ok(table) }
            })
            .start(transport)
            .await
    }
}
