//! Every name that Postrider gives to queues and exchanges, in one place.

use std::borrow::Cow;

/// The names of queues and exchanges.
///
/// Each is a template in which `{words in braces}` are filled in. The defaults are the names of
/// the documented wire format; services that talk to each other must use the same ones.
///
/// # Example: two systems on one broker
///
/// ```
/// use postrider_patterns::Naming;
///
/// assert_eq!(Naming::default().rpc_queue("inventory"), "rpc_inventory");
/// let staging = Naming::default().prefixed("staging.");
/// assert_eq!(staging.rpc_queue("inventory"), "staging.rpc_inventory");
/// assert_eq!(staging.event_exchange(), "staging.event_bus");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Naming {
    rpc_queue: Cow<'static, str>,
    rpc_exchange: Cow<'static, str>,
    rpc_instance_queue: Cow<'static, str>,
    reply_queue: Cow<'static, str>,
    event_exchange: Cow<'static, str>,
    durable_subscription_queue: Cow<'static, str>,
    ephemeral_subscription_queue: Cow<'static, str>,
    task_queue: Cow<'static, str>,
    task_exchange: Cow<'static, str>,
    task_instance_queue: Cow<'static, str>,
    stream_queue: Cow<'static, str>,
    transfer_queue: Cow<'static, str>,
    partition_queue: Cow<'static, str>,
    discovery_exchange: Cow<'static, str>,
    discovery_queue: Cow<'static, str>,
    config_exchange: Cow<'static, str>,
    config_queue: Cow<'static, str>,
    config_instance_queue: Cow<'static, str>,
    dead_letter_exchange: Cow<'static, str>,
    dead_letter_queue: Cow<'static, str>,
}

impl Default for Naming {
    fn default() -> Self {
        Self {
            rpc_queue: Cow::Borrowed("rpc_{service}"),
            rpc_exchange: Cow::Borrowed("rpc_{service}"),
            rpc_instance_queue: Cow::Borrowed("rpc_{service}.{purpose}.{id}"),
            reply_queue: Cow::Borrowed("reply_{client}_{id}"),
            event_exchange: Cow::Borrowed("event_bus"),
            durable_subscription_queue: Cow::Borrowed("{service}.{subscription}"),
            ephemeral_subscription_queue: Cow::Borrowed("{subscription}.{id}"),
            task_queue: Cow::Borrowed("{queue}"),
            task_exchange: Cow::Borrowed("{queue}.control"),
            task_instance_queue: Cow::Borrowed("{queue}.control.{id}"),
            stream_queue: Cow::Borrowed("stream_{service}"),
            transfer_queue: Cow::Borrowed("stream_{service}_{id}"),
            partition_queue: Cow::Borrowed("{queue}.partition.{number}"),
            discovery_exchange: Cow::Borrowed("discovery"),
            discovery_queue: Cow::Borrowed("discovery.{purpose}.{id}"),
            config_exchange: Cow::Borrowed("config"),
            config_queue: Cow::Borrowed("config_{service}.{name}"),
            config_instance_queue: Cow::Borrowed("config.{purpose}.{id}"),
            dead_letter_exchange: Cow::Borrowed("dead_letter_exchange"),
            dead_letter_queue: Cow::Borrowed("dead_letter_{queue}"),
        }
    }
}

impl Naming {
    /// The same names with `prefix` in front of each, the names of dead-letter queues included.
    #[must_use]
    pub fn prefixed(self, prefix: &str) -> Self {
        let add = |template: Cow<'static, str>| Cow::Owned(format!("{prefix}{template}"));
        Self {
            rpc_queue: add(self.rpc_queue),
            rpc_exchange: add(self.rpc_exchange),
            rpc_instance_queue: add(self.rpc_instance_queue),
            reply_queue: add(self.reply_queue),
            event_exchange: add(self.event_exchange),
            durable_subscription_queue: add(self.durable_subscription_queue),
            ephemeral_subscription_queue: add(self.ephemeral_subscription_queue),
            task_queue: add(self.task_queue),
            task_exchange: add(self.task_exchange),
            task_instance_queue: add(self.task_instance_queue),
            stream_queue: add(self.stream_queue),
            transfer_queue: add(self.transfer_queue),
            partition_queue: add(self.partition_queue),
            discovery_exchange: add(self.discovery_exchange),
            discovery_queue: add(self.discovery_queue),
            config_exchange: add(self.config_exchange),
            config_queue: add(self.config_queue),
            config_instance_queue: add(self.config_instance_queue),
            dead_letter_exchange: add(self.dead_letter_exchange),
            // The name of the queue it belongs to, which is filled in, has the prefix already.
            dead_letter_queue: self.dead_letter_queue,
        }
    }

    /// Sets the queue that a service takes its requests from. Default: `rpc_{service}`.
    #[must_use]
    pub fn with_rpc_queue(mut self, template: impl Into<Cow<'static, str>>) -> Self {
        self.rpc_queue = template.into();
        self
    }

    /// Sets the direct exchange that leads to every server of a service. Default: `rpc_{service}`.
    #[must_use]
    pub fn with_rpc_exchange(mut self, template: impl Into<Cow<'static, str>>) -> Self {
        self.rpc_exchange = template.into();
        self
    }

    /// Sets the queues that one server of a service has for itself. Default:
    /// `rpc_{service}.{purpose}.{id}`.
    #[must_use]
    pub fn with_rpc_instance_queue(mut self, template: impl Into<Cow<'static, str>>) -> Self {
        self.rpc_instance_queue = template.into();
        self
    }

    /// Sets the queue that a client takes its replies from. Default: `reply_{client}_{id}`.
    #[must_use]
    pub fn with_reply_queue(mut self, template: impl Into<Cow<'static, str>>) -> Self {
        self.reply_queue = template.into();
        self
    }

    /// Sets the topic exchange of events. Default: `event_bus`.
    #[must_use]
    pub fn with_event_exchange(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.event_exchange = name.into();
        self
    }

    /// Sets the queue of a durable subscription. Default: `{service}.{subscription}`.
    #[must_use]
    pub fn with_durable_subscription_queue(
        mut self,
        template: impl Into<Cow<'static, str>>,
    ) -> Self {
        self.durable_subscription_queue = template.into();
        self
    }

    /// Sets the queue of an ephemeral subscription. Default: `{subscription}.{id}`.
    #[must_use]
    pub fn with_ephemeral_subscription_queue(
        mut self,
        template: impl Into<Cow<'static, str>>,
    ) -> Self {
        self.ephemeral_subscription_queue = template.into();
        self
    }

    /// Sets the queue of tasks. Default: `{queue}`, the name that the task gives.
    #[must_use]
    pub fn with_task_queue(mut self, template: impl Into<Cow<'static, str>>) -> Self {
        self.task_queue = template.into();
        self
    }

    /// Sets the fanout exchange that leads to every worker of a queue. Default: `{queue}.control`,
    /// where `{queue}` is the name that the task gives.
    #[must_use]
    pub fn with_task_exchange(mut self, template: impl Into<Cow<'static, str>>) -> Self {
        self.task_exchange = template.into();
        self
    }

    /// Sets the queue that one worker has for itself. Default: `{queue}.control.{id}`.
    #[must_use]
    pub fn with_task_instance_queue(mut self, template: impl Into<Cow<'static, str>>) -> Self {
        self.task_instance_queue = template.into();
        self
    }

    /// Sets the queue that a service takes offers of streams from. Default: `stream_{service}`.
    #[must_use]
    pub fn with_stream_queue(mut self, template: impl Into<Cow<'static, str>>) -> Self {
        self.stream_queue = template.into();
        self
    }

    /// Sets the queue of one stream. Default: `stream_{service}_{id}`.
    #[must_use]
    pub fn with_transfer_queue(mut self, template: impl Into<Cow<'static, str>>) -> Self {
        self.transfer_queue = template.into();
        self
    }

    /// Sets the queue of one partition. Default: `{queue}.partition.{number}`.
    #[must_use]
    pub fn with_partition_queue(mut self, template: impl Into<Cow<'static, str>>) -> Self {
        self.partition_queue = template.into();
        self
    }

    /// Sets the topic exchange over which services find each other. Default: `discovery`.
    #[must_use]
    pub fn with_discovery_exchange(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.discovery_exchange = name.into();
        self
    }

    /// Sets the queue by which an announcer or a registry hears the others. Default:
    /// `discovery.{purpose}.{id}`.
    #[must_use]
    pub fn with_discovery_queue(mut self, template: impl Into<Cow<'static, str>>) -> Self {
        self.discovery_queue = template.into();
        self
    }

    /// Sets the direct exchange of configuration. Default: `config`.
    #[must_use]
    pub fn with_config_exchange(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.config_exchange = name.into();
        self
    }

    /// Sets the queue that keeps the last value of a setting. Default: `config_{service}.{name}`.
    #[must_use]
    pub fn with_config_queue(mut self, template: impl Into<Cow<'static, str>>) -> Self {
        self.config_queue = template.into();
        self
    }

    /// Sets the queue by which one instance hears of changes or of reports. Default:
    /// `config.{purpose}.{id}`.
    #[must_use]
    pub fn with_config_instance_queue(mut self, template: impl Into<Cow<'static, str>>) -> Self {
        self.config_instance_queue = template.into();
        self
    }

    /// Sets the direct exchange of dead letters. Default: `dead_letter_exchange`.
    #[must_use]
    pub fn with_dead_letter_exchange(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.dead_letter_exchange = name.into();
        self
    }

    /// Sets the queue, and routing key, of a queue's dead letters. Default:
    /// `dead_letter_{queue}`.
    #[must_use]
    pub fn with_dead_letter_queue(mut self, template: impl Into<Cow<'static, str>>) -> Self {
        self.dead_letter_queue = template.into();
        self
    }

    /// The queue that `service` takes its requests from.
    #[must_use]
    pub fn rpc_queue(&self, service: &str) -> String {
        fill(&self.rpc_queue, &[("{service}", service)])
    }

    /// The direct exchange that leads to every server of `service`.
    #[must_use]
    pub fn rpc_exchange(&self, service: &str) -> String {
        fill(&self.rpc_exchange, &[("{service}", service)])
    }

    /// The queue that the server `id` of `service` has for itself, for one `purpose`.
    #[must_use]
    pub fn rpc_instance_queue(&self, service: &str, purpose: &str, id: &str) -> String {
        let values = [("{service}", service), ("{purpose}", purpose), ("{id}", id)];
        fill(&self.rpc_instance_queue, &values)
    }

    /// The queue that the client named `client` takes its replies from.
    #[must_use]
    pub fn reply_queue(&self, client: &str, id: &str) -> String {
        fill(&self.reply_queue, &[("{client}", client), ("{id}", id)])
    }

    /// The topic exchange of events.
    #[must_use]
    pub fn event_exchange(&self) -> String {
        self.event_exchange.clone().into_owned()
    }

    /// The queue of the durable `subscription` of `service`.
    #[must_use]
    pub fn durable_subscription_queue(&self, service: &str, subscription: &str) -> String {
        fill(
            &self.durable_subscription_queue,
            &[("{service}", service), ("{subscription}", subscription)],
        )
    }

    /// The queue of one instance of an ephemeral `subscription`.
    #[must_use]
    pub fn ephemeral_subscription_queue(&self, subscription: &str, id: &str) -> String {
        fill(&self.ephemeral_subscription_queue, &[("{subscription}", subscription), ("{id}", id)])
    }

    /// The queue of the tasks that name `queue`.
    #[must_use]
    pub fn task_queue(&self, queue: &str) -> String {
        fill(&self.task_queue, &[("{queue}", queue)])
    }

    /// The fanout exchange that leads to every worker of the tasks that name `queue`.
    #[must_use]
    pub fn task_exchange(&self, queue: &str) -> String {
        fill(&self.task_exchange, &[("{queue}", queue)])
    }

    /// The queue that the worker `id` of the tasks that name `queue` has for itself.
    #[must_use]
    pub fn task_instance_queue(&self, queue: &str, id: &str) -> String {
        fill(&self.task_instance_queue, &[("{queue}", queue), ("{id}", id)])
    }

    /// The queue that `service` takes offers of streams from.
    #[must_use]
    pub fn stream_queue(&self, service: &str) -> String {
        fill(&self.stream_queue, &[("{service}", service)])
    }

    /// The queue of one stream to `service`.
    #[must_use]
    pub fn transfer_queue(&self, service: &str, id: &str) -> String {
        fill(&self.transfer_queue, &[("{service}", service), ("{id}", id)])
    }

    /// The queue of the partition `number`, from 0, of `queue`.
    #[must_use]
    pub fn partition_queue(&self, queue: &str, number: u32) -> String {
        let number = number.to_string();
        fill(&self.partition_queue, &[("{queue}", queue), ("{number}", &number)])
    }

    /// The topic exchange over which services find each other.
    #[must_use]
    pub fn discovery_exchange(&self) -> String {
        self.discovery_exchange.clone().into_owned()
    }

    /// The queue by which the announcer or registry `id` hears the others; `purpose` says which of
    /// the two it is.
    #[must_use]
    pub fn discovery_queue(&self, purpose: &str, id: &str) -> String {
        fill(&self.discovery_queue, &[("{purpose}", purpose), ("{id}", id)])
    }

    /// The direct exchange of configuration.
    #[must_use]
    pub fn config_exchange(&self) -> String {
        self.config_exchange.clone().into_owned()
    }

    /// The queue that keeps the last value of the setting `name` of `service`.
    #[must_use]
    pub fn config_queue(&self, service: &str, name: &str) -> String {
        fill(&self.config_queue, &[("{service}", service), ("{name}", name)])
    }

    /// The queue by which the instance `id` hears of changes or of reports, as `purpose` says.
    #[must_use]
    pub fn config_instance_queue(&self, purpose: &str, id: &str) -> String {
        fill(&self.config_instance_queue, &[("{purpose}", purpose), ("{id}", id)])
    }

    /// The direct exchange of dead letters.
    #[must_use]
    pub fn dead_letter_exchange(&self) -> String {
        self.dead_letter_exchange.clone().into_owned()
    }

    /// The queue, and routing key, of the dead letters of `queue`.
    #[must_use]
    pub fn dead_letter_queue(&self, queue: &str) -> String {
        fill(&self.dead_letter_queue, &[("{queue}", queue)])
    }
}

/// Fills the blanks in one pass, so that braces in a value stay what they are.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut filled = String::with_capacity(template.len() + 32);
    let mut rest = template;
    while let Some(brace) = rest.find('{') {
        filled.push_str(&rest[..brace]);
        rest = &rest[brace..];
        let blank = values.iter().find(|(blank, _)| rest.starts_with(blank));
        let (text, taken) = blank.map_or(("{", 1), |(blank, value)| (*value, blank.len()));
        filled.push_str(text);
        rest = &rest[taken..];
    }
    filled.push_str(rest);
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_are_filled_once() {
        let naming = Naming::default();
        assert_eq!(naming.reply_queue("{id}", "7"), "reply_{id}_7");
        assert_eq!(naming.durable_subscription_queue("a", "b"), "a.b");
        assert_eq!(naming.ephemeral_subscription_queue("b", "7"), "b.7");
        assert_eq!(naming.dead_letter_queue("a.b"), "dead_letter_a.b");
        let odd = naming.with_rpc_queue("{who}.{service}.{");
        assert_eq!(odd.rpc_queue("x"), "{who}.x.{");
    }
}
