-- Builds the globals of scripts from Lua's own and from the functions of Rust, and runs scripts.
--
-- What scripts share is read-only: a script sees an empty table whose metatable looks into the real
-- one and refuses writes. Errors of Rust are values that only Rust understands, so every function
-- that catches an error translates it. A script that has to stop gets no error caught.
--
-- Only locals are used here: a script cannot reach them.

local native, stock, libraries = ...

local error, type, tostring, select = stock.error, stock.type, stock.tostring, stock.select
local next, pairs, rawget, rawset = stock.next, stock.pairs, stock.rawget, stock.rawset
local getmetatable, setmetatable = stock.getmetatable, stock.setmetatable
local pcall, xpcall, load, loadstring = stock.pcall, stock.xpcall, stock.load, stock.loadstring
local collectgarbage, unpack = stock.collectgarbage, stock.unpack
local resume, concat, gsub = stock.coroutine.resume, stock.table.concat, stock.string.gsub
local check, translate, place = native.check, native.translate, native.place

local READ_ONLY = 'Attempt to modify a readonly table'

-- ---- what is read-only ----

-- The real table of each empty one.
local real = setmetatable({}, { __mode = 'k' })

local function refuse()
  error(READ_ONLY, 2)
end

local function protect(table, metatable)
  local empty = {}
  real[empty] = table
  return setmetatable(empty, { __index = table, __newindex = refuse, __metatable = metatable })
end

local locked = protect({})
getmetatable(locked).__metatable = locked

-- ---- what catches errors ----

-- What a script sees of an error that it caught.
local function caught(err)
  if type(err) == 'userdata' then
    err = translate(err)
  elseif err == 'not enough memory' then
    native.out_of_memory()
  elseif type(err) == 'string' then
    err = gsub(err, '^prelude:%d+: ', '')
  end
  check()
  return err
end

local function text_of(err)
  err = caught(err)
  if type(err) == 'table' then
    local text = rawget(err, 'err')
    if type(text) == 'string' then
      return text
    end
  end
  return err
end

local function protected(ok, ...)
  if ok then
    return true, ...
  end
  return false, text_of((...))
end

local function resumed(ok, ...)
  if ok then
    return true, ...
  end
  return false, caught((...))
end

-- ---- the globals ----

local globals = {}

for _, name in pairs({
  'assert', 'error', 'gcinfo', 'getmetatable', 'ipairs', 'next', 'rawequal', 'select', 'tonumber',
  'tostring', 'type', 'unpack', '_VERSION',
}) do
  globals[name] = stock[name]
end

function globals.pcall(...)
  return protected(pcall(...))
end

function globals.xpcall(body, handler)
  return protected(xpcall(body, function(err)
    return handler(caught(err))
  end))
end

function globals.rawget(table, key)
  return (rawget(real[table] or table, key))
end

function globals.rawset(table, key, value)
  if real[table] then
    error(READ_ONLY, 0)
  end
  return (rawset(table, key, value))
end

function globals.setmetatable(table, metatable)
  if real[table] then
    error(READ_ONLY, 0)
  end
  if type(metatable) == 'table' and rawget(metatable, '__gc') ~= nil then
    error('a metatable of a script has no __gc', 0)
  end
  return (setmetatable(table, metatable))
end

function globals.pairs(table)
  local within = real[table]
  if within then
    return function(_, key)
      return next(within, key)
    end, table, nil
  end
  if type(table) ~= 'table' then
    local kind = table == nil and 'nil' or type(table)
    error("bad argument #1 to 'pairs' (table expected, got " .. kind .. ')', 2)
  end
  return next, table, nil
end

-- Code that was compiled before is not loaded: it could do anything.
function globals.loadstring(code, name)
  if type(code) == 'number' then
    code = tostring(code)
  end
  if type(code) == 'string' and code:byte(1) == 27 then
    return nil, '[string "' .. (name or code:match('^[^%z]*')) .. '"]:1: unexpected symbol near \'char(27)\''
  end
  local loaded, err = loadstring(code, name)
  if loaded == nil then
    return nil, caught(err)
  end
  return loaded
end

function globals.load(reader, name)
  local parts = {}
  while true do
    local part = reader()
    if part == nil or part == '' then
      break
    end
    if type(part) ~= 'string' then
      return nil, 'reader function must return a string'
    end
    parts[#parts + 1] = part
  end
  return globals.loadstring(concat(parts), name or '=(load)')
end

-- A script cannot turn the collector off.
function globals.collectgarbage(option, argument)
  if option == 'stop' or option == 'restart' then
    return 0
  elseif option == 'setpause' or option == 'setstepmul' then
    return 200
  end
  if option ~= nil and option ~= 'count' and option ~= 'collect' and option ~= 'step' then
    error("bad argument #1 to 'collectgarbage' (invalid option '" .. tostring(option) .. "')", 2)
  end
  return (collectgarbage(option, argument))
end

-- ---- libraries ----

local function library(name, from)
  globals[name] = protect(from, locked)
end

local strings = {}
for _, name in pairs({ 'byte', 'char', 'dump', 'format', 'len', 'sub' }) do
  strings[name] = stock.string[name]
end
for _, name in pairs({ 'rep', 'find', 'match', 'gsub', 'lower', 'upper', 'reverse' }) do
  strings[name] = native[name]
end

local function one_match(state, after, ...)
  if after == nil then
    return nil
  end
  state.at = after
  return ...
end

function strings.gmatch(text, pattern)
  native.check_text(text, pattern)
  local state = { at = 0 }
  return function()
    if state.at == nil then
      return nil
    end
    return one_match(state, native.gmatch_next(text, pattern, state.at))
  end
end
strings.gfind = strings.gmatch

local of_strings = getmetatable('')
of_strings.__index = strings
of_strings.__metatable = protect({ __index = strings }, locked)

local coroutines = {}
for _, name in pairs({ 'create', 'running', 'status', 'wrap', 'yield' }) do
  coroutines[name] = stock.coroutine[name]
end
function coroutines.resume(...)
  return resumed(resume(...))
end

local maths = {}
for name, value in pairs(stock.math) do
  maths[name] = value
end
maths.random, maths.randomseed = native.random, native.randomseed

local tables = {}
for name, value in pairs(stock.table) do
  tables[name] = value
end

-- A call may take long, so the script is stopped before it, if it has to stop.
local sort = stock.table.sort
function tables.sort(...)
  check()
  return sort(...)
end
tables.concat = native.concat

library('string', strings)
library('coroutine', coroutines)
library('math', maths)
library('table', tables)
for name, from in pairs(libraries) do
  library(name, from)
end

local scripts = protect(globals, locked)
globals._G = scripts

setmetatable(globals, {
  __index = function(_, name)
    error("Script attempted to access nonexistent global variable '" .. tostring(name) .. "'", 2)
  end,
})

-- ---- running ----

-- What the reply of a script that failed is made of.
local function failed(err)
  if type(err) == 'userdata' then
    err = translate(err)
  elseif err == 'not enough memory' then
    native.out_of_memory()
  end
  local source, line = place()
  if type(err) ~= 'table' then
    local text = gsub(tostring(err), '^prelude:%d+: ', line and 'user_script:' .. line .. ': ' or '')
    return { err = 'ERR ' .. text, source = source, line = line }
  end
  return {
    err = rawget(err, 'err'),
    ignore_error_stats_update = rawget(err, 'ignore_error_stats_update'),
    source = source,
    line = line,
  }
end

-- Takes back what a script may have put into a table that is there to be empty, with functions
-- such as table.insert.
local function clean()
  for empty in next, real do
    local key = next(empty)
    while key ~= nil do
      rawset(empty, key, nil)
      key = next(empty)
    end
  end
end

local function run(script, keys, arguments)
  -- A script that was stopped may not have been cleaned up after.
  clean()
  globals.KEYS, globals.ARGV = keys, arguments
  local ok, result = xpcall(script, failed)
  globals.KEYS, globals.ARGV = nil, nil
  clean()
  return ok, result
end

return scripts, run
