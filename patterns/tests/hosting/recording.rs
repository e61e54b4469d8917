//! A transport that notes what is declared through it.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use postrider_core::{
    Capabilities, Consumer, ConsumerOptions, Env, Health, Plan, Publisher, PublisherOptions,
    QueueInfo, Replies, ReplyOptions, Result, Topology, Transport, TransportEvent,
};

#[derive(Debug)]
pub(crate) struct Recording {
    inner: Arc<dyn Transport>,
    declared: Mutex<Topology>,
}

impl Recording {
    pub(crate) fn new(inner: Arc<dyn Transport>) -> Arc<Self> {
        Arc::new(Self { inner, declared: Mutex::default() })
    }

    pub(crate) fn declared(&self) -> Topology {
        self.declared.lock().unwrap().clone()
    }
}

#[async_trait]
impl Transport for Recording {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn env(&self) -> &Env {
        self.inner.env()
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    async fn plan(&self, topology: &Topology) -> Result<Plan> {
        self.inner.plan(topology).await
    }

    async fn declare(&self, topology: &Topology) -> Result<()> {
        {
            let mut declared = self.declared.lock().unwrap();
            *declared = declared.clone().and(topology.clone());
        }
        self.inner.declare(topology).await
    }

    async fn remove(&self, topology: &Topology) -> Result<()> {
        self.inner.remove(topology).await
    }

    async fn queue_info(&self, queue: &str) -> Result<Option<QueueInfo>> {
        self.inner.queue_info(queue).await
    }

    async fn purge(&self, queue: &str) -> Result<u64> {
        self.inner.purge(queue).await
    }

    async fn publisher(&self, options: PublisherOptions) -> Result<Arc<dyn Publisher>> {
        self.inner.publisher(options).await
    }

    async fn consumer(&self, queue: &str, options: ConsumerOptions) -> Result<Consumer> {
        self.inner.consumer(queue, options).await
    }

    async fn replies(&self, options: ReplyOptions) -> Result<Replies> {
        self.inner.replies(options).await
    }

    fn events(&self) -> BoxStream<'static, TransportEvent> {
        self.inner.events()
    }

    fn health(&self) -> Health {
        self.inner.health()
    }

    async fn close(&self, deadline: Duration) -> Result<()> {
        self.inner.close(deadline).await
    }
}
