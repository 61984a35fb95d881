"""Which settings stand together: in the help of a command, in the file of ``config init`` and in the schema.

Every field stands in one group of its table. What a person sets in the common case is ``Essential``; the rest is named
by what it is about, and what different tables call the same stands together in a command's help.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from eagle3cli.settings.fields import SettingsField, fields

ESSENTIAL = "Essential"
AGAIN = "Doing it again"

GROUPS: Mapping[str, Mapping[str, str]] = {
    "target": {
        ESSENTIAL: "model_path",
        "Target": "adapter backend revision dtype device threads trust_remote_code",
        "Target over several devices": "tp_size mem_fraction_static device_map max_memory offload_folder",
    },
    "draft": {
        ESSENTIAL: "path",
        "Draft": "config vocab_size aux_layers init fc_norm norm_output window sinks serve_with",
    },
    "data": {
        ESSENTIAL: "train_path eval_path",
        "Data": "train_hidden_states_path eval_hidden_states_path cache_dir max_length last_turn_only num_proc "
        "check_masks",
        "Chat template": "chat_template chat_template_kwargs system_prompt is_preformatted assistant_header "
        "end_of_turn_token user_header",
    },
    "prepare": {
        ESSENTIAL: "source output_path sample_size split_eval",
        "Where rows come from": "map data_path split subset seed",
        "Which rows stay": "prompts_only min_turns max_turns max_prompt_words near_duplicates drop_truncated "
        "drop_loops drop_refusals",
        AGAIN: "overwrite",
    },
    "server": {
        ESSENTIAL: "address_port",
        "Servers": "python llama_server args replicas tp_size mem_fraction_static port max_concurrency "
        "request_timeout dist_timeout",
    },
    "regenerate": {
        ESSENTIAL: "input_path output_dir engine max_tokens temperature",
        "Sampling": "top_p top_k seed",
        "Replies": "turns system_prompt is_reasoning_model reasoning_effort recorded",
        "Work": "batch_size num_per_shard sample_range",
        AGAIN: "retry_errors overwrite",
    },
    "merge": {
        ESSENTIAL: "input_dir output_dir train_size eval_size",
        "Which rows stay": "drop_truncated drop_loops drop_refusals seed",
        AGAIN: "overwrite",
    },
    "cache": {
        ESSENTIAL: "view_train_data",
        "Draft": "reply_weight prompt_weight",
        AGAIN: "overwrite",
    },
    "view": {
        ESSENTIAL: "rows path random worst html",
        "What is shown": "id seed ids whitespace check_template",
    },
    "hidden_states": {
        ESSENTIAL: "output_path encoding sample_size",
        "What is written": "split dtype enable_aux_hidden_states shard_mb",
        "Memory and speed": "batch_tokens batch_size mem_frac",
        "Stores that are there": "paths recompute",
        AGAIN: "overwrite",
    },
    "train": {
        ESSENTIAL: "mode output_dir num_epochs batch_size learning_rate",
        "How long": "total_steps time_budget early_stop max_skipped_steps",
        "Optimiser": "optimizer lr_schedule min_lr_ratio warmup_ratio ema_decay max_grad_norm head_lr_scale seed",
        "Loss": "ttt_length loss kl_scale kl_decay loss_decay anchor_fraction alignment",
        "Memory and speed": "micro_batch_size max_tokens_per_gpu attention_backend activation_checkpointing loss_chunk "
        "dtype sharding context_parallel echo_factor echo_buffer keep_states",
        "Saving and evaluating": "save_interval eval_interval log_interval keep_checkpoints eval_rows best_by top_p "
        "top_k",
        "Trackers": "report_to tracker_project tracker_name",
        AGAIN: "resume overwrite",
    },
    "launch": {
        ESSENTIAL: "gpus",
        "Target over several devices": "target_gpus transfer_encoding",
        "Memory and speed": "dist_timeout",
    },
    "eval": {
        ESSENTIAL: "depths rows temperature",
        "Sampling": "top_p top_k",
    },
    "export": {
        ESSENTIAL: "output_path layout dtype outtype",
        "Model card and hub": "license push private",
        AGAIN: "overwrite",
    },
    "bench": {
        ESSENTIAL: "engine config_list benchmark_list output",
        "Answers": "benchmark_dir max_tokens temperature top_p top_k seed multi_turn system_prompt run_code",
        "Measuring": "repeats warm_up search search_runs",
        AGAIN: "overwrite",
    },
    "run": {
        ESSENTIAL: "output_dir from_stage to_stage list",
        "Stages": "only_stage regenerate",
        "Plan": "calibrate",
        "Final measurement": "k held_out_prompts new_tokens speed_prompts batch_size",
        AGAIN: "overwrite",
    },
    "refresh": {
        ESSENTIAL: "draft logs rollback time_budget",
        "Which rows stay": "model_names off_policy sample_size min_rows client_share most_foreign",
        "Training": "rehearsal num_epochs learning_rate",
        "Promotion": "held_out_rows least_gain tolerance keep_versions",
    },
    "report": {
        ESSENTIAL: "runs output_path charts",
    },
    "watch": {
        ESSENTIAL: "run once",
    },
}


def group_of(field: SettingsField) -> str:
    """The group that a field stands in."""
    return next(title for title, names in GROUPS[field.table].items() if field.name in names.split())


def groups_of_table(table: str) -> dict[str, list[SettingsField]]:
    """The fields of a table by group, the essential ones first, in the order in which they are set."""
    return {title: [fields()[f"{table}.{name}"] for name in names.split()] for title, names in GROUPS[table].items()}


def grouped(chosen: Iterable[SettingsField]) -> dict[str, list[SettingsField]]:
    """Fields of several tables by group: the essential ones first, what is done again last."""
    titles: dict[str, list[SettingsField]] = {ESSENTIAL: []}
    positions = {key: place for place, key in enumerate(_in_order())}
    for field in sorted(chosen, key=lambda field: positions[field.key]):
        titles.setdefault(group_of(field), []).append(field)
    again = titles.pop(AGAIN, [])
    titles |= {AGAIN: again}
    return {title: members for title, members in titles.items() if members}


def _in_order() -> list[str]:
    """The keys of all fields: by table, within it by group."""
    return [field.key for table in GROUPS for members in groups_of_table(table).values() for field in members]
