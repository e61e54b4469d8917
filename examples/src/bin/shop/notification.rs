//! The notification service: tells customers what became of their orders.
//!
//! It hears of orders as events and makes a task of each: e-mails may be slow, and any number of
//! workers can share them.

use std::sync::Arc;

use postrider::{
    Context, EventBus, HandlerError, Running, SubmitOptions, Subscription, Transport, WorkQueue,
    Worker,
};

use crate::{
    book::Book,
    contract::{News, Order, OrderRefused, OrderShipped, SendEmail},
    setup::Setup,
};

#[derive(Clone)]
struct Notification {
    tasks: WorkQueue,
    outbox: Arc<Book<()>>,
    setup: Setup,
}

/// Starts the service.
pub(crate) async fn start(
    transport: &Arc<dyn Transport>,
    setup: &Setup,
) -> postrider::Result<[Running; 2]> {
    let tasks = WorkQueue::builder(transport).codec(setup.codec).connect().await?;
    let outbox = Arc::new(Book::new(setup.board.clone()));
    let sending = Notification { tasks, outbox, setup: setup.clone() };
    let (shipped, refused) = (sending.clone(), sending.clone());

    let worker = Worker::new("send_email")
        .on(move |task: SendEmail, _: Context| sending.clone().send(task))
        .start(transport)
        .await?;
    let subscription = Subscription::durable("notification", "orders")
        .on(move |event: OrderShipped, context| {
            shipped.clone().tell(event.order, News::Shipped, context)
        })
        .on(move |event: OrderRefused, context| {
            let news = News::Refused { reason: event.reason };
            refused.clone().tell(event.order, news, context)
        });
    let bus = EventBus::new(transport).await?;
    Ok([bus.subscribe(subscription).await?, worker])
}

impl Notification {
    async fn tell(self, order: Order, news: News, context: Context) -> Result<(), HandlerError> {
        if !self.setup.is_ours(&order.id) {
            return Ok(());
        }
        let options = SubmitOptions::default().caused_by(&context);
        self.tasks.submit_with(&SendEmail { order, news }, options).await?;
        Ok(())
    }

    async fn send(self, task: SendEmail) -> Result<(), HandlerError> {
        if !self.setup.is_ours(&task.order.id) {
            return Ok(());
        }
        self.outbox.once(&task.order.id, || {
            // Here a real shop would speak SMTP.
            let email = compose(&task);
            self.setup.board.note(|figures| {
                figures.emails_sent += 1;
                figures.email_bytes += email.len() as u64;
            });
        });
        Ok(())
    }
}

fn compose(SendEmail { order, news }: &SendEmail) -> String {
    let Order { id, customer, day, cds, price } = order;
    let discs = if *cds == 1 { "1 CD".to_owned() } else { format!("{cds} CDs") };
    let (subject, body) = match news {
        News::Shipped => (
            "is on its way",
            format!("your order of {day}, {discs} for {price}, left our house today."),
        ),
        News::Refused { reason } => (
            "could not be carried out",
            format!("we are sorry: {reason}. You were not charged for your {discs}."),
        ),
    };
    format!(
        "To: customer-{customer}@example.com\r\nSubject: Order {id} {subject}\r\n\r\n\
         Dear customer {customer},\r\n\r\n{body}\r\n\r\nYour CD shop\r\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        contract::OrderId,
        units::{Cents, Day},
    };

    #[test]
    fn an_email_says_what_happened() {
        let day = Day::parse("19970118").unwrap();
        let id = OrderId::new("ab12", 7);
        let order = Order { id, customer: 4, day, cds: 1, price: Cents(2_973) };
        let shipped = compose(&SendEmail { order: order.clone(), news: News::Shipped });
        assert!(shipped.starts_with("To: customer-4@example.com\r\nSubject: Order ab12-000007 is"));
        assert!(shipped.contains("your order of 1997-01-18, 1 CD for $29.73, left"));
        let news = News::Refused { reason: "it is too much".into() };
        assert!(compose(&SendEmail { order, news }).contains("we are sorry: it is too much."));
    }
}
