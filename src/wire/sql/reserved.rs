//! Owns which custom settings outlast `DISCARD ALL` in a way that others notice.
//!
//! A setting with a library's prefix can be made before the library is loaded, and its name stays in the backend. When
//! somebody loads the library there later, such as by a first call of PL/pgSQL, PostgreSQL warns of names that the library
//! doesn't know, and removes them. Names that it knows are empty by then, and nobody notices them.

/// The prefixes that libraries reserve which are loaded in the middle of a session, and the names that they know.
const RESERVED: [(&str, &[&str]); 9] = [
    (
        "plpgsql",
        &[
            "variable_conflict",
            "print_strict_params",
            "check_asserts",
            "extra_warnings",
            "extra_errors",
        ],
    ),
    (
        "plperl",
        &["on_init", "on_plperl_init", "on_plperlu_init", "use_strict"],
    ),
    ("pltcl", &["start_proc"]),
    ("pltclu", &["start_proc"]),
    (
        "pg_trgm",
        &[
            "similarity_threshold",
            "word_similarity_threshold",
            "strict_word_similarity_threshold",
        ],
    ),
    ("postgres_fdw", &["application_name"]),
    (
        "auto_explain",
        &[
            "log_min_duration",
            "log_analyze",
            "log_buffers",
            "log_wal",
            "log_timing",
            "log_triggers",
            "log_verbose",
            "log_settings",
            "log_format",
            "log_level",
            "log_nested_statements",
            "log_parameter_max_length",
            "sample_rate",
        ],
    ),
    (
        "hnsw",
        &[
            "ef_search",
            "iterative_scan",
            "max_scan_tuples",
            "scan_mem_multiplier",
        ],
    ),
    ("ivfflat", &["probes", "iterative_scan", "max_probes"]),
];

/// Whether a custom setting of this name, in lower case, is one that a library may complain about when it is loaded.
#[must_use]
pub fn is_reserved(name: &str) -> bool {
    let Some((prefix, rest)) = name.split_once('.') else {
        return false;
    };
    let reserved = RESERVED.iter().find(|(known, _)| *known == prefix);
    reserved.is_some_and(|(_, names)| !names.contains(&rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_complains_of_names_that_it_does_not_know() {
        assert!(is_reserved("plpgsql.extra_foo_warnings"));
        assert!(is_reserved("plpgsql.extra.warnings"));
        for fine in [
            "plpgsql.extra_warnings",
            "app.tenant",
            "plpgsql",
            "plpgsqls.x",
        ] {
            assert!(!is_reserved(fine), "{fine}");
        }
    }
}
