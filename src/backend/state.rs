//! Owns what a session would lose with its backend: settings, the role, and what SQL prepared.

/// What a session would lose with its backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Settings made in the session, by name.
    pub settings: Vec<(String, String)>,
    /// Custom settings that the session named, with their values.
    pub custom: Vec<(String, String)>,
    /// The role that is set.
    pub role: Option<String>,
    /// What SQL `PREPARE` made, by name.
    pub prepared: Vec<SqlPrepared>,
}

/// A statement that SQL `PREPARE` made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SqlPrepared {
    pub name: String,
    /// The text that made it, and nothing else.
    pub text: String,
    /// The object ids of its parameters' types, as PostgreSQL shows them.
    pub types: String,
    /// The role and the search_path that it was first found under: it is made under them again.
    pub under: Scene,
}

/// What names in a text are looked up by. `None` is what RESET goes back to.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Scene {
    pub role: Option<String>,
    pub search_path: Option<String>,
}

impl SqlPrepared {
    /// Whether PostgreSQL shows the same of both.
    #[must_use]
    pub fn looks_like(&self, other: &Self) -> bool {
        (&self.name, &self.text, &self.types) == (&other.name, &other.text, &other.types)
    }
}

impl State {
    /// Whether there is nothing to restore.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self {
            settings,
            custom,
            role,
            prepared,
        } = self;
        settings.is_empty() && custom.is_empty() && role.is_none() && prepared.is_empty()
    }

    /// The value of a setting that was made in the session.
    #[must_use]
    pub fn setting(&self, name: &str) -> Option<&str> {
        let found = self.settings.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// What names are looked up by now.
    #[must_use]
    pub fn scene(&self) -> Scene {
        Scene {
            role: self.role.clone(),
            search_path: self.setting("search_path").map(str::to_owned),
        }
    }

    /// Whether SQL prepared a statement of this name.
    #[must_use]
    pub fn has_prepared(&self, name: &[u8]) -> bool {
        self.prepared
            .iter()
            .any(|prepared| prepared.name.as_bytes() == name)
    }
}
