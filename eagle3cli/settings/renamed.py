"""Names that people know from elsewhere, above all from SpecForge, and what they are called here."""

from __future__ import annotations

RENAMED = {
    "accumulation_steps": "train.micro_batch_size",
    "aux_hidden_state_layer_ids": "draft.aux_layers",
    "aux_hidden_states_layers": "draft.aux_layers",
    "ckpt_dir": "draft.path",
    "concurrency": "server.max_concurrency",
    "dp_size": "launch.gpus",
    "draft_accumulation_steps": "train.micro_batch_size",
    "draft_checkpoint_path": "draft.path",
    "epochs": "train.num_epochs",
    "gradient_accumulation_steps": "train.micro_batch_size",
    "hidden_states_path": "data.train_hidden_states_path",
    "is_gpt_oss": "regenerate.is_reasoning_model",
    "lk_loss_type": "train.loss",
    "log_steps": "train.log_interval",
    "lr": "train.learning_rate",
    "lr_scheduler": "train.lr_schedule",
    "max_checkpoints": "train.keep_checkpoints",
    "max_num_steps": "train.total_steps",
    "max_seq_length": "data.max_length",
    "max_steps": "train.total_steps",
    "num_samples": "prepare.sample_size",
    "per_device_batch_size": "train.micro_batch_size",
    "per_device_train_batch_size": "train.micro_batch_size",
    "raw_data_file": "regenerate.input_path",
    "resume_from": "train.resume",
    "save_steps": "train.save_interval",
    "target_backend": "target.backend",
    "target_model_path": "target.model_path",
    "torch_dtype": "target.dtype",
    "train_data_path": "data.train_path",
    "train_only_last_turn": "data.last_turn_only",
}
"""Old name: the key it has become."""

TABLES = {"training": "train", "model": "target", "dataset": "data", "deployment": "launch", "benchmark": "bench"}
"""Old table: the table it has become."""

GONE = {
    "embedding_key": "leave it out: the embedding is found by itself",
    "lm_head_key": "leave it out: the head is found by itself",
    "swanlab_key": "set SWANLAB_API_KEY in the environment; keys stand in no file",
    "vocab_mapping_path": "leave it out: eagle3 cache chooses the draft vocabulary, and the draft keeps it",
    "wandb_key": "set WANDB_API_KEY in the environment; keys stand in no file",
}
"""Old name without a new one: what to do instead."""
