//! The sales service: keeps the sheet of each sales day, and reports on a day when it is over.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use postrider::{
    Context, EventBus, HandlerError, Running, SubmitOptions, Subscription, Transport, WorkQueue,
    Worker,
};

use crate::{
    book::Book,
    contract::{GenerateReport, Order, OrderPaid, OrderRefused},
    setup::Setup,
    units::{Cents, Day, grouped},
};

/// What was sold on a day.
#[derive(Debug, Clone, Default)]
struct Sheet {
    /// Orders of the day that have not come to their end yet.
    open: usize,
    paid: u64,
    cds: u64,
    revenue: Cents,
    reported: bool,
}

#[derive(Clone)]
struct Sales {
    tasks: WorkQueue,
    known: Arc<Book<()>>,
    sheets: Arc<Mutex<BTreeMap<Day, Sheet>>>,
    setup: Setup,
}

/// Starts the service. A real shop closes a day at midnight; this one runs through months in
/// seconds, and a day is over when all of its `orders` were paid or refused.
pub(crate) async fn start(
    transport: &Arc<dyn Transport>,
    setup: &Setup,
    orders: &[Order],
) -> postrider::Result<[Running; 2]> {
    let mut sheets = BTreeMap::<Day, Sheet>::new();
    for order in orders {
        sheets.entry(order.day).or_default().open += 1;
    }
    let reporting = Sales {
        tasks: WorkQueue::builder(transport).codec(setup.codec).connect().await?,
        known: Arc::new(Book::new(setup.board.clone())),
        sheets: Arc::new(Mutex::new(sheets)),
        setup: setup.clone(),
    };
    let (paid, refused) = (reporting.clone(), reporting.clone());

    let worker = Worker::new("generate_report")
        .on(move |task: GenerateReport, _: Context| reporting.clone().report(task))
        .start(transport)
        .await?;
    let subscription = Subscription::durable("sales", "settled")
        .on(move |event: OrderPaid, context| paid.clone().record(event.order, true, context))
        .on(move |event: OrderRefused, context| {
            refused.clone().record(event.order, false, context)
        });
    let bus = EventBus::new(transport).await?;
    Ok([bus.subscribe(subscription).await?, worker])
}

impl Sales {
    async fn record(self, order: Order, paid: bool, context: Context) -> Result<(), HandlerError> {
        if !self.setup.is_ours(&order.id) {
            return Ok(());
        }
        self.known.once(&order.id, || {
            if let Some(sheet) = self.sheets().get_mut(&order.day) {
                sheet.open -= 1;
                if paid {
                    sheet.paid += 1;
                    sheet.cds += u64::from(order.cds);
                    sheet.revenue += order.price;
                }
            }
        });
        let is_over =
            self.sheets().get(&order.day).is_some_and(|sheet| sheet.open == 0 && !sheet.reported);
        if is_over {
            let task = GenerateReport { run: self.setup.run.clone(), day: order.day };
            self.tasks.submit_with(&task, SubmitOptions::default().caused_by(&context)).await?;
        }
        Ok(())
    }

    async fn report(self, task: GenerateReport) -> Result<(), HandlerError> {
        let GenerateReport { run, day } = task;
        if run != self.setup.run {
            self.setup.board.note(|figures| figures.left_over += 1);
            return Ok(());
        }
        let mut sheets = self.sheets();
        let sheet = sheets
            .get_mut(&day)
            .ok_or_else(|| HandlerError::not_found(format!("nothing was ordered on {day}")))?;
        if sheet.reported {
            self.setup.board.note(|figures| figures.duplicates += 1);
            return Ok(());
        }
        sheet.reported = true;
        let report = compose(day, sheet);
        self.setup.board.note(|figures| {
            figures.reports += 1;
            figures.reported += sheet.revenue;
            figures.report_bytes += report.len() as u64;
            figures.best_day = figures.best_day.max(Some((sheet.revenue, day)));
        });
        Ok(())
    }

    fn sheets(&self) -> MutexGuard<'_, BTreeMap<Day, Sheet>> {
        // The figures of a sheet are changed together, with nothing between them that can panic.
        self.sheets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn compose(day: Day, sheet: &Sheet) -> String {
    let Sheet { paid, cds, revenue, .. } = sheet;
    let average = Cents(revenue.0 / (*paid).max(1));
    format!(
        "Sales of {day}\n\norders   {}\nCDs      {}\nrevenue  {revenue}\naverage  {average}\n",
        grouped(*paid),
        grouped(*cds),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_without_sales_has_a_report_too() {
        let day = Day::parse("19970101").unwrap();
        assert!(compose(day, &Sheet::default()).contains("average  $0.00"));
        let sheet = Sheet { paid: 2, cds: 3, revenue: Cents(2_001), ..Sheet::default() };
        assert!(compose(day, &sheet).ends_with("revenue  $20.01\naverage  $10.00\n"));
    }
}
