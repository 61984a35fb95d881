#compdef eagle3

_eagle3_completion() {
  eval $(env _TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" _EAGLE3_COMPLETE=complete_zsh eagle3)
}

compdef _eagle3_completion eagle3

