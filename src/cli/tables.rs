//! Owns how answers look to people: tables as wide as the terminal, coloured only there.
//!
//! Refuses to let a client's bytes steer the terminal: control characters are shown, not sent.

use comfy_table::{Cell, Color, ContentArrangement, Table, presets};

use super::views::{Backend, Instance, Leak, Leaks, Lease, Owner, Reload, ReloadLease};

/// The live leases, or all sessions.
pub(super) fn leases(leases: &[Lease]) -> String {
    if leases.is_empty() {
        return "Nobody holds a backend.\n".to_owned();
    }
    let mut table = table(&[
        "SESSION",
        "OWNER",
        "VERDICT",
        "IDLE",
        "DATABASE",
        "USER",
        "BACKEND",
        "PINS",
        "LAST STATEMENT",
    ]);
    for lease in leases {
        table.add_row([
            plain(lease.session),
            plain(owner(&lease.owner, &lease.evidence)),
            verdict(lease),
            optional(lease.idle.as_deref()),
            plain(&lease.database),
            plain(&lease.user),
            optional(lease.backend.map(|pid| pid.to_string()).as_deref()),
            optional(
                (!lease.pins.is_empty())
                    .then(|| lease.pins.join(", "))
                    .as_deref(),
            ),
            optional(lease.last_statement.as_deref()),
        ]);
    }
    finished(&table)
}

/// Owners with their counts.
pub(super) fn owners(owners: &[Owner]) -> String {
    if owners.is_empty() {
        return "No sessions.\n".to_owned();
    }
    let mut table = table(&[
        "OWNER",
        "EVIDENCE",
        "SESSIONS",
        "LEASES",
        "ACTIVE",
        "IN TRANSACTION",
        "IDLE",
        "RESTING",
        "PARKED",
        "LONGEST IDLE",
    ]);
    for owner in owners {
        let parked = plain(owner.parked);
        table.add_row([
            plain(&owner.owner),
            plain(&owner.evidence),
            plain(owner.sessions),
            plain(owner.leases),
            plain(owner.active),
            plain(owner.in_transaction),
            plain(owner.idle),
            plain(owner.resting),
            if owner.parked > 0 {
                parked.fg(Color::Yellow)
            } else {
                parked
            },
            optional(owner.longest_idle.as_deref()),
        ]);
    }
    finished(&table)
}

/// Parked leases, and what to do about each.
pub(super) fn leaks(leaks: &Leaks) -> String {
    let bound = leaks
        .park_after
        .as_ref()
        .map(|bound| format!(" for {bound} or longer"))
        .unwrap_or_default();
    if leaks.leaks.is_empty() {
        return format!("Nobody has parked{bound}.\n");
    }
    let mut table = table(&[
        "SESSION",
        "OWNER",
        "PARKED FOR",
        "SINCE",
        "LAST HOUR",
        "BASIS",
        "PROCESS",
        "WHERE",
        "LAST STATEMENT",
    ]);
    for leak in &leaks.leaks {
        let process = leak
            .lease
            .process
            .as_ref()
            .map(|process| match &process.command {
                Some(command) => format!("{} {command}", process.pid),
                None => process.pid.to_string(),
            });
        table.add_row([
            plain(leak.lease.session),
            plain(owner(&leak.lease.owner, &leak.lease.evidence)),
            optional(leak.parked_for.as_deref()).fg(Color::Yellow),
            optional(leak.parked_since.as_deref()),
            optional(last_hour(leak).as_deref()),
            optional(leak.lease.basis.as_deref()),
            optional(process.as_deref()),
            optional(leak.lease.place.as_deref()),
            optional(leak.lease.last_statement.as_deref()),
        ]);
    }
    let mut text = finished(&table);
    text.push('\n');
    for leak in &leaks.leaks {
        if let Some(remedy) = &leak.remedy {
            text.push_str(&format!(
                "{} {}: {}\n",
                leak.lease.session,
                printable(&leak.lease.owner),
                printable(remedy)
            ));
        }
    }
    text
}

/// `3 times, 42s`: how often and how long a leak's owner parked.
fn last_hour(leak: &Leak) -> Option<String> {
    let times = match leak.count_last_hour? {
        1 => "once".to_owned(),
        count => format!("{count} times"),
    };
    Some(match &leak.total_last_hour {
        Some(total) => format!("{times}, {total}"),
        None => times,
    })
}

/// A reload: its counts, and each lease.
pub(super) fn reload(reload: &Reload) -> String {
    let mut text = reload_line(reload);
    if !reload.leases.is_empty() {
        text.push('\n');
        text.push_str(&outcomes(&reload.leases));
    }
    if !reload.instances.is_empty() {
        text.push('\n');
        text.push_str(&fleet(&reload.instances));
    }
    text
}

/// A reload in one line.
pub(super) fn reload_line(reload: &Reload) -> String {
    let took = reload
        .took
        .as_ref()
        .map(|took| format!(" in {took}"))
        .unwrap_or_default();
    let kind = if reload.dry_run {
        "dry run of reload"
    } else {
        "reload"
    };
    let counts = reload.counts.iter().filter(|(_, count)| **count > 0);
    let counts: Vec<String> = counts
        .map(|(outcome, count)| format!("{count} {outcome}"))
        .collect();
    let counts = if counts.is_empty() {
        "no lease matched".to_owned()
    } else {
        counts.join(", ")
    };
    format!(
        "{kind} {}, generation {}: {}{took}; {counts}\n",
        reload.id, reload.generation, reload.state
    )
}

/// What became of some leases.
pub(super) fn outcomes(leases: &[ReloadLease]) -> String {
    if leases.is_empty() {
        return "No lease matched.\n".to_owned();
    }
    let mut table = table(&[
        "SESSION",
        "OWNER",
        "OUTCOME",
        "REASON",
        "IDLE",
        "LAST STATEMENT",
    ]);
    for lease in leases {
        table.add_row([
            plain(lease.session),
            plain(owner(&lease.owner, &lease.evidence)),
            outcome(&lease.outcome),
            optional(lease.reason.as_deref()),
            optional(lease.idle.as_deref()),
            optional(lease.last_statement.as_deref()),
        ]);
    }
    finished(&table)
}

/// What became of backends that nobody leases.
pub(super) fn backends(backends: &[Backend]) -> String {
    if backends.is_empty() {
        return "There are no backends that nobody leases.\n".to_owned();
    }
    let mut table = table(&["BACKEND", "DATABASE", "USER", "OUTCOME", "BY", "REASON"]);
    for one in backends {
        table.add_row([
            plain(one.backend),
            plain(&one.database),
            plain(&one.user),
            plain(&one.outcome),
            optional(one.by.map(|pid| pid.to_string()).as_deref()),
            optional(one.reason.as_deref()),
        ]);
    }
    finished(&table)
}

/// Every pgvalet of a fleet.
pub(super) fn fleet(instances: &[Instance]) -> String {
    let mut table = table(&[
        "INSTANCE",
        "STATE",
        "VERSION",
        "SESSIONS",
        "LEASES",
        "GENERATION",
        "OUTCOMES",
        "REASON",
    ]);
    let number = |number: Option<u64>| optional(number.map(|number| number.to_string()).as_deref());
    for one in instances {
        let counts = one.counts.iter().filter(|(_, count)| **count > 0);
        let counts: Vec<_> = counts
            .map(|(word, count)| format!("{count} {word}"))
            .collect();
        let counts = (!counts.is_empty()).then(|| counts.join(", "));
        table.add_row([
            plain(&one.instance),
            plain(&one.state),
            optional(one.version.as_deref()),
            number(one.sessions),
            number(one.leases),
            number(one.generation),
            optional(counts.as_deref()),
            optional(one.reason.as_deref()),
        ]);
    }
    finished(&table)
}

/// What became of one lease, in one line.
pub(super) fn outcome_line(lease: &ReloadLease) -> String {
    let reason = lease.reason.as_ref();
    let reason = reason
        .map(|reason| format!(" ({reason})"))
        .unwrap_or_default();
    let (session, outcome) = (lease.session, &lease.outcome);
    let owner = owner(&lease.owner, &lease.evidence);
    printable(&format!("{session}  {owner}  {outcome}{reason}")) + "\n"
}

fn table(headers: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(headers);
    // A table's first column starts where the text around it does.
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1));
    }
    if std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
        let width = table.width();
        table.force_no_tty();
        if let Some(width) = width {
            table.set_width(width);
        }
    }
    table
}

fn finished(table: &Table) -> String {
    let mut text: String = table
        .lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect();
    if text.is_empty() {
        text.push('\n');
    }
    text
}

fn plain(value: impl ToString) -> Cell {
    Cell::new(printable(&value.to_string()))
}

fn optional(value: Option<&str>) -> Cell {
    plain(value.unwrap_or("-"))
}

/// `dispatcher (claim)`: a name is worth what it rests on.
fn owner(name: &str, evidence: &str) -> String {
    match evidence {
        "" | "none" => name.to_owned(),
        _ => format!("{name} ({evidence})"),
    }
}

fn verdict(lease: &Lease) -> Cell {
    let word = if lease.verdict.is_empty() {
        &lease.state
    } else {
        &lease.verdict
    };
    let cell = plain(match &lease.basis {
        Some(basis) => format!("{word} ({basis})"),
        None => word.clone(),
    });
    match word.as_str() {
        "parked" => cell.fg(Color::Yellow),
        "active" | "in_transaction" => cell.fg(Color::Green),
        _ => cell,
    }
}

fn outcome(word: &str) -> Cell {
    let cell = plain(word);
    match word {
        "returned" => cell.fg(Color::Green),
        "busy" | "pinned" => cell.fg(Color::Yellow),
        _ => cell,
    }
}

/// The text in one line, control characters escaped: statements and names come from clients.
pub(super) fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => printable.push(' '),
            _ if c.is_control() => printable.extend(c.escape_default()),
            _ => printable.push(c),
        }
    }
    printable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_bytes_cannot_steer_the_terminal() {
        let lease = Lease {
            last_statement: Some("SELECT '\u{1b}[2J'\nFROM t".into()),
            ..Lease::default()
        };
        let shown = leases(&[lease]);
        assert!(shown.contains("SELECT '\\u{1b}[2J' FROM t"), "{shown}");
    }
}
