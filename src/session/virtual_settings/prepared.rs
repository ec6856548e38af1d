//! Owns prepared statements about virtual settings: Parse, Bind, Describe, Execute and Close of them.

use std::rc::Rc;

use super::{Own, Turn};
use crate::session::Session;
use crate::wire::extended::{self, Statement, Target};
use crate::wire::frame::cstr;
use crate::wire::reply;
use crate::wire::rows;
use crate::wire::sql::virtual_setting::{self, Virtual};
use crate::wire::tracker::Origin;

/// The most statements that one session may have here: beyond it, PostgreSQL gets them.
const MOST: usize = 64;

/// Statements and portals about virtual settings.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    statements: Vec<Made>,
    /// Portals by name, until their request ends.
    portals: Vec<(Box<[u8]>, Virtual, Place)>,
}

#[derive(Debug)]
struct Made {
    statement: Rc<Statement>,
    found: Virtual,
    place: Place,
}

/// Who knows a statement or a portal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Only we.
    Here,
    /// PostgreSQL is being told.
    Moving,
    /// PostgreSQL.
    There,
}

impl Prepared {
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty() && self.portals.is_empty()
    }

    pub fn clear(&mut self) {
        self.statements
            .retain(|made| made.statement.name.is_empty());
    }

    pub fn forget(&mut self, name: &[u8]) {
        self.statements.retain(|made| *made.statement.name != *name);
    }

    /// Whether PostgreSQL doesn't know this statement.
    pub fn is_only_here(&self, name: &[u8]) -> bool {
        self.find(name)
            .is_some_and(|made| made.place == Place::Here)
    }

    fn find(&self, name: &[u8]) -> Option<&Made> {
        self.statements
            .iter()
            .find(|made| *made.statement.name == *name)
    }

    fn keep(&mut self, statement: Rc<Statement>, found: Virtual, place: Place) {
        self.forget(&statement.name);
        self.statements.push(Made {
            statement,
            found,
            place,
        });
    }

    /// PostgreSQL knows this statement now.
    pub fn adopted(&mut self, name: &[u8]) {
        for made in self
            .statements
            .iter_mut()
            .filter(|made| *made.statement.name == *name)
        {
            made.place = Place::There;
        }
    }

    /// Every request is answered: portals are gone, and what PostgreSQL wasn't told by now, it never heard.
    pub fn answered(&mut self) {
        self.portals.clear();
        for made in self
            .statements
            .iter_mut()
            .filter(|made| made.place == Place::Moving)
        {
            made.place = Place::Here;
        }
    }

    fn open_portal(&mut self, name: &[u8], found: Virtual, place: Place) {
        self.portals.retain(|(known, ..)| **known != *name);
        self.portals.push((name.into(), found, place));
    }

    fn portal(&self, name: &[u8]) -> Option<(Virtual, Place)> {
        let portal = self.portals.iter().find(|(known, ..)| **known == *name)?;
        Some((portal.1.clone(), portal.2))
    }
}

impl Session {
    pub(super) fn own_parse(&mut self, body: &[u8]) -> Own {
        let found = extended::parse_text(body).and_then(virtual_setting::read);
        let name = extended::parse_name(body).unwrap_or_default();
        let statement = found.and_then(|found| Some((found, Rc::new(Statement::read(body)?))));
        let Some((found, statement)) = statement else {
            // Whatever had this name isn't ours any longer.
            if let Some(known) = &mut self.virtuals.0 {
                known.prepared.forget(name);
            }
            self.virtuals.tidy();
            return Own::No;
        };
        let turn = self.turn();
        let prepared = &mut self.virtuals.known().prepared;
        let full = prepared.statements.len() >= MOST;
        match turn {
            Turn::Later => {
                self.virtuals.tidy();
                Own::Hold
            }
            Turn::Ours if !full => {
                prepared.keep(statement, found, Place::Here);
                self.reply(rows::parse_complete);
                Own::Done
            }
            Turn::Ours | Turn::Theirs => {
                if !full {
                    prepared.keep(statement, found, Place::There);
                }
                Own::No
            }
        }
    }

    /// A message that may name a statement or portal of ours.
    pub(super) fn own_extended(&mut self, kind: u8, body: &[u8]) -> Own {
        match kind {
            b'B' => self.own_bind(body),
            b'E' => self.own_execute(cstr(body).map_or(body, |(portal, _)| portal)),
            b'D' => match extended::target(body) {
                Some(Target::Statement(name)) => self.own_describe(name),
                Some(Target::Portal(name)) => self.own_describe_portal(name),
                None => Own::No,
            },
            b'C' => match extended::target(body) {
                Some(target) => self.own_close(target),
                None => Own::No,
            },
            b'S' => self.own_sync(),
            b'H' if self.virtuals.known().open => Own::Done,
            _ => Own::No,
        }
    }

    /// Answers a message here.
    fn reply(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut out = Vec::new();
        write(&mut out);
        self.to_client.push(&out);
        self.virtuals.known().open = true;
    }

    fn own_bind(&mut self, body: &[u8]) -> Own {
        let portal = cstr(body).map_or(body, |(portal, _)| portal);
        let name = extended::bind_statement(body).unwrap_or_default();
        let turn = self.turn();
        let prepared = &mut self.virtuals.known().prepared;
        let Some(made) = prepared.find(name) else {
            prepared.portals.retain(|(known, ..)| **known != *portal);
            return Own::No;
        };
        let (found, place) = (made.found.clone(), made.place);
        match (place, turn) {
            (Place::Here, Turn::Later) => return Own::Hold,
            (Place::Here, Turn::Ours) => {
                prepared.open_portal(portal, found, Place::Here);
                self.reply(rows::bind_complete);
                return Own::Done;
            }
            (Place::Here, Turn::Theirs) | (Place::Moving | Place::There, _) => {}
        }
        prepared.open_portal(portal, found, Place::There);
        self.hand_over(name)
    }

    /// PostgreSQL has to answer for this statement: it is told of it first, where it doesn't know it.
    fn hand_over(&mut self, name: &[u8]) -> Own {
        let prepared = &mut self.virtuals.known().prepared;
        let here = |made: &&mut Made| *made.statement.name == *name && made.place == Place::Here;
        let Some(made) = prepared.statements.iter_mut().find(here) else {
            return Own::No;
        };
        made.place = Place::Moving;
        let statement = made.statement.clone();
        let mut parse = Vec::new();
        statement.write_parse(&mut parse);
        if name.is_empty() {
            // The session keeps its unnamed statement by the body of its Parse.
            self.statements
                .unnamed
                .sent_parse(parse.get(crate::wire::frame::HEADER..).unwrap_or_default());
        }
        self.tracker.sent_parse(statement, Origin::Adopted);
        Own::After(parse)
    }

    fn own_describe(&mut self, name: &[u8]) -> Own {
        let turn = self.turn();
        let Some(made) = self.virtuals.known().prepared.find(name) else {
            return Own::No;
        };
        let found = made.found.clone();
        match (made.place, turn) {
            (Place::Here, Turn::Later) => Own::Hold,
            (Place::Here, Turn::Ours) => {
                let mut out = Vec::new();
                rows::no_parameters(&mut out);
                self.describe_or_not(&mut out, &found);
                self.reply(|all| all.extend_from_slice(&out));
                Own::Done
            }
            (Place::Here, Turn::Theirs) => self.hand_over(name),
            (Place::Moving | Place::There, _) => Own::No,
        }
    }

    fn own_describe_portal(&mut self, name: &[u8]) -> Own {
        match (self.virtuals.known().prepared.portal(name), self.turn()) {
            (Some((found, Place::Here)), Turn::Ours) => {
                let mut out = Vec::new();
                self.describe_or_not(&mut out, &found);
                self.reply(|all| all.extend_from_slice(&out));
                Own::Done
            }
            (Some((_, Place::Here | Place::Moving | Place::There)) | None, _) => Own::No,
        }
    }

    fn own_execute(&mut self, portal: &[u8]) -> Own {
        match (self.virtuals.known().prepared.portal(portal), self.turn()) {
            (Some((found, Place::Here)), Turn::Ours) => {
                let mut out = Vec::new();
                self.execute(&mut out, &found);
                self.reply(|all| all.extend_from_slice(&out));
                Own::Done
            }
            (Some((found, Place::There)), _) => {
                self.learn_later(found.meaning);
                Own::No
            }
            (Some((_, Place::Here | Place::Moving)) | None, _) => Own::No,
        }
    }

    /// Close of what PostgreSQL doesn't know is harmless there: in the middle of a pipeline it is forwarded.
    fn own_close(&mut self, target: Target<'_>) -> Own {
        let ours = self.turn() == Turn::Ours;
        let prepared = &mut self.virtuals.known().prepared;
        let here = match target {
            Target::Statement(name) => {
                let here = prepared.is_only_here(name);
                prepared.forget(name);
                here
            }
            Target::Portal(name) => {
                let here = matches!(prepared.portal(name), Some((_, Place::Here)));
                prepared.portals.retain(|(known, ..)| **known != *name);
                here
            }
        };
        if here && ours {
            self.reply(rows::close_complete);
            return Own::Done;
        }
        Own::No
    }

    /// The end of a request that was answered here altogether.
    fn own_sync(&mut self) -> Own {
        let known = self.virtuals.known();
        if !known.open {
            return Own::No;
        }
        known.open = false;
        known.prepared.answered();
        self.to_client.push(&reply::ready(self.tracker.status()));
        self.virtuals.tidy();
        Own::Done
    }
}
