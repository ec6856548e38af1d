//! Owns the words that may stand before a parenthesis without anything being left in the session.
//!
//! What runs behind such a name all the same, since the database has a function of its own under it, is known from the
//! database's definitions ([`super::hazards`]).

use std::sync::LazyLock;

/// Words of the grammar, and types that take a modifier.
const GRAMMAR: &str = "\
    all and any array as between bigint bit by bytea case cast character coalesce collate conflict cube current_time \
    current_timestamp dec decimal default distinct else except exists extract filter float from greatest group \
    grouping having ilike in inet int integer intersect is join json json_array json_arrayagg json_exists \
    json_objectagg json_query json_scalar json_table json_value jsonb key lateral least like limit localtime \
    localtimestamp materialized nchar not nullif offset on only or order ordinality over overlay partition position \
    real returning rollup row select set sets smallint some substring then time timestamp trim union using uuid values \
    varying when where with within xmlconcat xmlelement xmlforest xmlparse xmlpi xmlroot xmlserialize";

/// Functions that PostgreSQL declares immutable or stable, and that run no SQL that they are given.
const FUNCTIONS: &str = "\
    abbrev abs acldefault aclexplode acos acosd acosh age any_value area array_agg array_dims array_fill array_length \
    array_lower array_ndims array_position array_positions array_remove array_replace array_reverse array_sort \
    array_to_json array_to_string array_to_tsvector array_upper ascii asin asind asinh atan atan2 atan2d atand atanh \
    avg bit_and bit_count bit_length bit_or bit_xor bool bool_and bool_or box bpchar broadcast btrim cardinality \
    casefold cbrt ceil ceiling center char char_length character_length chr circle col_description concat concat_ws \
    convert convert_from convert_to corr cos cosd cosh cot cotd count covar_pop covar_samp crc32 crc32c cume_dist \
    current_database current_schema current_schemas current_setting current_user date date_add date_bin date_part \
    date_subtract date_trunc datemultirange daterange decode degrees dense_rank diagonal diameter div encode \
    enum_first enum_last enum_range erf erfc every exp factorial family first_value float4 float8 floor format \
    format_type gamma gcd generate_series generate_subscripts get_bit get_byte get_current_ts_config \
    getdatabaseencoding has_any_column_privilege has_column_privilege has_database_privilege \
    has_foreign_data_wrapper_privilege has_function_privilege has_language_privilege has_largeobject_privilege \
    has_parameter_privilege has_schema_privilege has_sequence_privilege has_server_privilege has_table_privilege \
    has_tablespace_privilege has_type_privilege height host hostmask icu_unicode_version inet_client_addr \
    inet_client_port inet_server_addr inet_server_port initcap int2 int4 int4multirange int4range int8 int8multirange \
    int8range interval is_normalized isclosed isempty isfinite ishorizontal isopen isparallel isperp isvertical \
    json_agg json_agg_strict json_array_elements json_array_elements_text json_array_length json_build_array \
    json_build_object json_each json_each_text json_object json_object_agg json_object_agg_strict \
    json_object_agg_unique json_object_agg_unique_strict json_object_keys json_strip_nulls json_to_record \
    json_to_recordset json_to_tsvector json_typeof jsonb_agg jsonb_agg_strict jsonb_array_elements \
    jsonb_array_elements_text jsonb_array_length jsonb_build_array jsonb_build_object jsonb_each jsonb_each_text \
    jsonb_insert jsonb_object jsonb_object_agg jsonb_object_agg_strict jsonb_object_agg_unique \
    jsonb_object_agg_unique_strict jsonb_object_keys jsonb_path_exists jsonb_path_exists_tz jsonb_path_match \
    jsonb_path_match_tz jsonb_path_query jsonb_path_query_array jsonb_path_query_array_tz jsonb_path_query_first \
    jsonb_path_query_first_tz jsonb_path_query_tz jsonb_pretty jsonb_set jsonb_set_lax jsonb_strip_nulls \
    jsonb_to_record jsonb_to_recordset jsonb_to_tsvector jsonb_typeof justify_days justify_hours justify_interval lag \
    last_value lcm lead left length lgamma line ln log log10 lower lower_inc lower_inf lpad lseg ltrim macaddr \
    macaddr8 make_date make_interval make_time make_timestamp make_timestamptz makeaclitem masklen max md5 min \
    min_scale mod mode money multirange mxid_age name netmask network normalize now npoints nth_value ntile \
    num_nonnulls num_nulls numeric nummultirange numnode numrange obj_description octet_length oid overlaps \
    parse_ident path pclose percent_rank percentile_cont percentile_disc pg_available_extension_versions \
    pg_available_extensions pg_backend_pid pg_basetype pg_char_to_encoding pg_client_encoding pg_collation_for \
    pg_collation_is_visible pg_column_compression pg_column_is_updatable pg_column_size pg_conf_load_time \
    pg_conversion_is_visible pg_current_snapshot pg_current_xact_id pg_current_xact_id_if_assigned pg_describe_object \
    pg_encoding_to_char pg_filenode_relation pg_function_is_visible pg_get_acl pg_get_constraintdef pg_get_expr \
    pg_get_function_arg_default pg_get_function_arguments pg_get_function_identity_arguments pg_get_function_result \
    pg_get_function_sqlbody pg_get_functiondef pg_get_indexdef pg_get_keywords pg_get_partition_constraintdef \
    pg_get_partkeydef pg_get_replica_identity_index pg_get_ruledef pg_get_serial_sequence pg_get_statisticsobjdef \
    pg_get_statisticsobjdef_columns pg_get_statisticsobjdef_expressions pg_get_triggerdef pg_get_userbyid \
    pg_get_viewdef pg_has_role pg_identify_object pg_identify_object_as_address pg_index_column_has_property \
    pg_index_has_property pg_indexam_has_property pg_is_other_temp_schema pg_lsn pg_opclass_is_visible \
    pg_operator_is_visible pg_opfamily_is_visible pg_options_to_table pg_partition_root pg_postmaster_start_time \
    pg_relation_filenode pg_relation_filepath pg_relation_is_publishable pg_relation_is_updatable \
    pg_sequence_parameters pg_settings_get_flags pg_size_bytes pg_size_pretty pg_snapshot_xip pg_snapshot_xmax \
    pg_snapshot_xmin pg_statistics_obj_is_visible pg_table_is_visible pg_tablespace_location pg_timezone_abbrevs \
    pg_timezone_names pg_trigger_depth pg_ts_config_is_visible pg_ts_dict_is_visible pg_ts_parser_is_visible \
    pg_ts_template_is_visible pg_type_is_visible pg_typeof pg_visible_in_snapshot pg_wal_lsn_diff pg_walfile_name \
    pg_walfile_name_offset phraseto_tsquery pi plainto_tsquery point polygon popen pow power quote_ident quote_literal \
    quote_nullable radians radius range_agg range_intersect_agg range_merge rank regexp_count regexp_instr regexp_like \
    regexp_match regexp_matches regexp_replace regexp_split_to_array regexp_split_to_table regexp_substr regr_avgx \
    regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy repeat replace reverse right \
    round row_number row_security_active row_to_json rpad rtrim scale session_user set_bit set_byte set_masklen \
    setweight sha224 sha256 sha384 sha512 shobj_description sign sin sind sinh slope split_part sqrt starts_with \
    statement_timestamp stddev stddev_pop stddev_samp string_agg string_to_array string_to_table strip strpos substr \
    sum tan tand tanh text timestamptz timetz timezone to_ascii to_bin to_char to_date to_hex to_json to_jsonb \
    to_number to_oct to_regclass to_regcollation to_regnamespace to_regoper to_regoperator to_regproc to_regprocedure \
    to_regrole to_regtype to_regtypemod to_timestamp to_tsquery to_tsvector transaction_timestamp translate trim_array \
    trim_scale trunc ts_delete ts_filter ts_headline ts_lexize ts_parse ts_rank ts_rank_cd ts_token_type tsmultirange \
    tsquery_phrase tsrange tstzmultirange tstzrange tsvector_to_array txid_current txid_current_if_assigned \
    txid_current_snapshot txid_snapshot_xip txid_snapshot_xmax txid_snapshot_xmin txid_visible_in_snapshot \
    unicode_assigned unicode_version unistr unnest upper upper_inc upper_inf uuid_extract_timestamp \
    uuid_extract_version var_pop var_samp varbit varchar variance version websearch_to_tsquery width width_bucket xml \
    xml_is_well_formed xml_is_well_formed_content xml_is_well_formed_document xmlagg xmlcomment xmlexists xmltext \
    xpath xpath_exists";

/// Functions that are volatile, but leave nothing behind their transaction.
const VOLATILE: &str = "\
    array_sample array_shuffle clock_timestamp current_query currval gen_random_uuid lastval pg_advisory_xact_lock \
    pg_advisory_xact_lock_shared pg_blocking_pids pg_cancel_backend pg_current_wal_flush_lsn pg_current_wal_insert_lsn \
    pg_current_wal_lsn pg_database_size pg_indexes_size pg_is_in_recovery pg_last_wal_receive_lsn \
    pg_last_wal_replay_lsn pg_last_xact_replay_timestamp pg_notify pg_relation_size pg_sleep pg_sleep_for \
    pg_sleep_until pg_table_size pg_tablespace_size pg_terminate_backend pg_total_relation_size \
    pg_try_advisory_xact_lock pg_try_advisory_xact_lock_shared pg_xact_status random random_normal timeofday \
    txid_status uuidv4 uuidv7";

/// Functions of extensions that come with PostgreSQL.
const EXTENSIONS: &str = "\
    crypt digest gen_random_bytes gen_salt hmac levenshtein similarity unaccent uuid_generate_v1 uuid_generate_v1mc \
    uuid_generate_v4 uuid_generate_v5 word_similarity";

/// All of them, in order.
static WORDS: LazyLock<Box<[&str]>> = LazyLock::new(|| {
    let lists = [GRAMMAR, FUNCTIONS, VOLATILE, EXTENSIONS];
    let mut words: Vec<&str> = lists
        .iter()
        .flat_map(|list| list.split_ascii_whitespace())
        .collect();
    words.sort_unstable();
    words.into()
});

/// Functions that are taken for harmless, though PostgreSQL declares them volatile; and those of which it must not.
#[must_use]
pub fn functions() -> (Vec<&'static str>, Vec<&'static str>) {
    let words = |list: &'static str| list.split_ascii_whitespace().collect();
    (words(VOLATILE), words(FUNCTIONS))
}

/// Whether a parenthesis behind this word calls nothing that leaves anything.
pub(super) fn is_harmless(word: &[u8]) -> bool {
    let compare = |known: &&str| {
        let folded = word.iter().map(u8::to_ascii_lowercase);
        known.bytes().cmp(folded)
    };
    WORDS.binary_search_by(compare).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_found_in_any_case_and_stands_once() {
        let mut before = "";
        for word in WORDS.iter() {
            assert!(before < *word, "{word}");
            assert!(is_harmless(word.to_ascii_uppercase().as_bytes()), "{word}");
            before = word;
        }
        for word in [
            "",
            "set_config",
            "setseed",
            "low",
            "lowerr",
            "zzz",
            "pg_advisory_lock",
        ] {
            assert!(!is_harmless(word.as_bytes()), "{word}");
        }
    }
}
