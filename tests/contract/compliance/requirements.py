"""What Postgres can do, for SQLAlchemy's suite. Says nothing of drivers: no driver is excused from anything."""

import sqlalchemy
from sqlalchemy.testing import exclusions
from sqlalchemy.testing.requirements import SuiteRequirements

_YES = (
    "array_type",
    "async_dialect",
    "autocommit",
    "boolean_col_expressions",
    "check_constraint_reflection",
    "column_collation_reflection",
    "comment_reflection",
    "comment_reflection_full_unicode",
    "computed_columns",
    "computed_columns_reflect_persisted",
    "computed_columns_stored",
    "constraint_comment_reflection",
    "create_or_replace_view",
    "create_table_as",
    "create_temp_table_as",
    "cross_schema_fk_reflection",
    "ctes",
    "ctes_on_dml",
    "ctes_with_update_delete",
    "ctes_with_values",
    "date_historic",
    "datetime_literals",
    "datetime_historic",
    "datetime_interval",
    "datetime_timezone",
    "datetime_timezone_historic",
    "default_schema_name_switch",
    "deferrable_fks",
    "delete_from",
    "except_",
    "expression_server_defaults",
    "fetch_expression",
    "fetch_first",
    "fetch_no_order_by",
    "fetch_offset_with_options",
    "fetch_ties",
    "fk_constraint_option_reflection_ondelete_noaction",
    "fk_constraint_option_reflection_ondelete_restrict",
    "fk_constraint_option_reflection_onupdate_restrict",
    "float_or_double_precision_behaves_generically",
    "foreign_key_constraint_name_reflection",
    "foreign_key_constraint_option_reflection_ondelete",
    "foreign_key_constraint_option_reflection_onupdate",
    "has_temp_table",
    "identity_columns",
    "identity_columns_standard",
    "implicit_default_schema",
    "index_ddl_if_exists",
    "index_reflects_included_columns",
    "indexes_check_column_order",
    "indexes_with_expressions",
    "infinity_floats",
    "inline_check_constraint_reflection",
    "intersect",
    "isolation_level",
    "json_type",
    "legacy_unconditional_json_extract",
    "materialized_views",
    "mod_operator_as_percent_sign",
    "nullsordering",
    "order_by_label_with_expression",
    "percent_schema_names",
    "precision_numerics_enotation_large",
    "precision_numerics_enotation_small",
    "precision_numerics_many_significant_digits",
    "precision_numerics_retains_significant_digits",
    "reflect_indexes_with_expressions",
    "reflect_tables_no_columns",
    "reflects_pk_names",
    "regexp_match",
    "regexp_replace",
    "repeated_column_foreign_keys",
    "savepoints",
    "schema_create_delete",
    "server_defaults",
    "skip_autocommit_rollback",
    "supports_bitwise_and",
    "supports_bitwise_not",
    "supports_bitwise_or",
    "supports_bitwise_shift",
    "supports_bitwise_xor",
    "supports_distinct_on",
    "symbol_names_w_double_quote",
    "table_ddl_if_exists",
    "table_value_constructor",
    "temp_table_comment_reflection",
    "temp_table_names",
    "temporary_views",
    "time_timezone",
    "timestamp_microseconds",
    "tuple_in",
    "two_phase_transactions",
    "unicode_ddl",
    "unique_constraints_reflect_as_index",
    "update_from",
    "uuid_data_type",
    "views",
    "window_functions",
    "window_range",
    "window_range_non_numeric",
    "window_range_numeric",
)
"""What SQLAlchemy takes for impossible until it is told otherwise."""


_OLD = sqlalchemy.__version__.startswith("2.0.")
_NEW = exclusions.closed() if _OLD else exclusions.open()


class Requirements(SuiteRequirements):
    """Postgres."""

    def get_order_by_collation(self, config):
        return "POSIX"

    def get_isolation_levels(self, config):
        """As SQLAlchemy asks for them."""
        dialect = config.db.dialect
        return {
            "default": dialect.default_isolation_level,
            "supported": dialect.get_isolation_level_values(None),
        }

    @property
    def unusual_column_name_characters(self):
        """Anything between quotes."""
        return exclusions.open()

    @property
    def reflect_table_options(self):
        """SQLAlchemy 2.0 does not read them."""
        return _NEW

    @property
    def computed_columns_virtual(self):
        """Postgres 18 has them, SQLAlchemy 2.0 does not know."""
        return _NEW

    @property
    def computed_columns_default_persisted(self):
        """For SQLAlchemy 2.0 that is all there is."""
        return exclusions.open() if _OLD else exclusions.closed()

    @property
    def json_deserializer_binary(self):
        """psycopg's dialect of SQLAlchemy 2.0 hands over bytes."""
        return exclusions.only_if(lambda config: _OLD and config.db.dialect.driver != "asyncpg")


for _name in _YES:
    setattr(Requirements, _name, property(lambda self: exclusions.open()))
