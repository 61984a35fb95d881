_eagle3_completion() {
    local IFS=$'
'
    COMPREPLY=( $( env COMP_WORDS="${COMP_WORDS[*]}" \
                   COMP_CWORD=$COMP_CWORD \
                   _EAGLE3_COMPLETE=complete_bash $1 ) )
    return 0
}

complete -o default -F _eagle3_completion eagle3

