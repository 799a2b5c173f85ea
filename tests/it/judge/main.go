// Judges histories of single keys with porcupine: is there an order of the operations, each between its call and its return,
// in which a key would have answered so?
//
// Standard input: one operation per line, fields separated by tabs:
//
//	history client call return operation argument output
//
// `return` is "open" where nobody knows whether the operation took effect; its output does not count then. "-" stands for a key
// that is not there, and for an argument or output that there is not. Standard output: a line "history verdict" for each.
package main

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

const absent = "-"

// Time for one history; "Unknown" after it.
const patience = 20 * time.Second

type input struct{ operation, argument string }

type output struct {
	known bool
	text  string
}

func main() {
	var names []string
	histories := map[string][]porcupine.Operation{}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, operation := parse(strings.Split(lines.Text(), "\t"))
		if histories[name] == nil {
			names = append(names, name)
		}
		histories[name] = append(histories[name], operation)
	}
	must(lines.Err())
	key := porcupine.Model{Init: func() any { return absent }, Step: step}
	for _, name := range names {
		fmt.Println(name, porcupine.CheckOperationsTimeout(key, histories[name], patience))
	}
}

func parse(fields []string) (string, porcupine.Operation) {
	if len(fields) != 7 {
		panic(fmt.Sprintf("not 7 fields: %q", fields))
	}
	client, err := strconv.Atoi(fields[1])
	must(err)
	operation := porcupine.Operation{
		ClientId: client,
		Call:     number(fields[2]),
		Return:   math.MaxInt64,
		Input:    input{fields[4], fields[5]},
		Output:   output{},
	}
	if fields[3] != "open" {
		operation.Return = number(fields[3])
		operation.Output = output{true, fields[6]}
	}
	return fields[0], operation
}

// What a key does: its answer and its next state, and whether the answer is the one that came.
func step(state, in, out any) (bool, any) {
	before, asked, came := state.(string), in.(input), out.(output)
	answer, after := answer(before, asked)
	return !came.known || came.text == answer, after
}

func answer(before string, asked input) (answer, after string) {
	switch asked.operation {
	case "get":
		return before, before
	case "set":
		return "OK", asked.argument
	case "getset":
		return before, asked.argument
	case "del":
		// What it answers is what its node knew.
		return absent, absent
	case "setnx":
		if before == absent {
			return "OK", asked.argument
		}
		return absent, before
	case "delete-if":
		if before == asked.argument {
			return "1", absent
		}
		return "0", before
	case "incr":
		if before == absent {
			before = "0"
		}
		sum := strconv.FormatInt(number(before)+1, 10)
		return sum, sum
	}
	panic("no such operation: " + asked.operation)
}

func number(text string) int64 {
	number, err := strconv.ParseInt(text, 10, 64)
	must(err)
	return number
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
