//! What people see of a run: a bar while it lasts, and its figures in the end.

use std::fmt::Write;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use serde::Serialize;

use crate::{
    book::Figures,
    inventory, payment,
    units::{Cents, Day, grouped},
};

/// A bar on stderr for `orders`; it hides when stderr is no terminal.
pub(crate) fn progress(orders: u64) -> ProgressBar {
    let bar = ProgressBar::new(orders);
    // A template that cannot be read would only cost the looks.
    if let Ok(style) = ProgressStyle::with_template(
        "{msg:10}  {bar:40}  {human_pos} of {human_len} orders  {rate} per second  {eta} left",
    ) {
        let rate = |state: &ProgressState, text: &mut dyn Write| {
            let _shown_or_not = write!(text, "{:.0}", state.per_sec());
        };
        bar.set_style(style.with_key("rate", rate).progress_chars("━╸ "));
    }
    bar
}

/// The result of a run. Its JSON form is for programs: names stay what they are.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    orders: u64,
    customers: u64,
    completed: u64,
    refused_by_inventory: u64,
    refused_by_payment: u64,
    revenue_cents: u64,
    cds_shipped: u64,
    emails_sent: u64,
    reports: u64,
    events_published: u64,
    rpc_calls: u64,
    duplicates: u64,
    left_over: u64,
    bad_lines: u64,
    elapsed_ms: u64,
    orders_per_second: u64,
    transport: String,
    codec: String,
    #[serde(skip)]
    days: Option<(Day, Day)>,
    #[serde(skip)]
    best_day: Option<(Cents, Day)>,
    #[serde(skip)]
    text_bytes: u64,
}

/// What a run was about, beside its figures.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) orders: u64,
    pub(crate) customers: u64,
    pub(crate) days: Option<(Day, Day)>,
    pub(crate) bad_lines: u64,
    pub(crate) elapsed_ms: u64,
    pub(crate) transport: String,
    pub(crate) codec: String,
}

impl Summary {
    pub(crate) fn new(facts: Facts, figures: &Figures) -> Self {
        Self {
            orders: facts.orders,
            customers: facts.customers,
            completed: figures.completed,
            refused_by_inventory: figures.refused_by_inventory,
            refused_by_payment: figures.refused_by_payment,
            revenue_cents: figures.revenue.0,
            cds_shipped: figures.cds_shipped,
            emails_sent: figures.emails_sent,
            reports: figures.reports,
            events_published: figures.events_published,
            rpc_calls: figures.rpc_calls,
            duplicates: figures.duplicates,
            left_over: figures.left_over,
            bad_lines: facts.bad_lines,
            elapsed_ms: facts.elapsed_ms,
            orders_per_second: facts.orders * 1_000 / facts.elapsed_ms.max(1),
            transport: facts.transport,
            codec: facts.codec,
            days: facts.days,
            best_day: figures.best_day,
            text_bytes: figures.email_bytes + figures.report_bytes,
        }
    }

    /// The table for people.
    pub(crate) fn table(&self) -> String {
        let mut table = String::new();
        let mut row = |name: &str, value: String, note: String| {
            let line = format!("  {name:<24}{value:>14}   {note}");
            // Writing to a string does not fail.
            let _always = writeln!(table, "{}", line.trim_end());
        };
        let none = String::new;
        let most_cds = inventory::MOST_CDS;
        let days = self.days.map(|(first, last)| format!(", {first} to {last}"));
        let about = format!("{} customers{}", grouped(self.customers), days.unwrap_or_default());
        row("orders", grouped(self.orders), about);
        row("  completed", grouped(self.completed), none());
        row(
            "  refused by inventory",
            grouped(self.refused_by_inventory),
            format!("more than {most_cds} CDs"),
        );
        row(
            "  refused by payment",
            grouped(self.refused_by_payment),
            format!("more than {}", payment::MOST),
        );
        row("revenue", Cents(self.revenue_cents).to_string(), none());
        row("CDs shipped", grouped(self.cds_shipped), none());
        row("e-mails sent", grouped(self.emails_sent), none());
        let best = self.best_day.map(|(revenue, day)| format!("best day {day} with {revenue}"));
        row("daily reports", grouped(self.reports), best.unwrap_or_default());
        row("text written", format!("{} KiB", grouped(self.text_bytes / 1_024)), none());
        row("events published", grouped(self.events_published), none());
        row("RPC calls", grouped(self.rpc_calls), none());
        row("duplicates recognised", grouped(self.duplicates), none());
        if self.left_over > 0 {
            row("left by other runs", grouped(self.left_over), "ignored".to_owned());
        }
        row("bad lines", grouped(self.bad_lines), none());
        let _always = writeln!(
            table,
            "\n  {}.{:03} s, {} orders per second, over {} in {}",
            self.elapsed_ms / 1_000,
            self.elapsed_ms % 1_000,
            grouped(self.orders_per_second),
            self.transport,
            self.codec,
        );
        table
    }
}
