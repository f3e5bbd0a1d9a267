// The order saga as three services on NATS JetStream: saga orders|inventory|payments NATS_URL [DATABASE].
//
// Without DATABASE a service keeps its state in memory and forgets it when it ends: it answers and acknowledges before
// anything is stored. With DATABASE, a SQLite file, one goroutine decides about all that waits, up to 128 at once, in one
// transaction with inbox and outbox rows (group commit, synchronous=FULL), and only then answers, publishes and acknowledges.
package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	_ "github.com/mattn/go-sqlite3"
	"github.com/nats-io/nats.go"
)

const batchMax = 128

type Item struct {
	ProductID string `json:"product_id"`
	Quantity  int    `json:"quantity"`
}

// Event is the body of every message.
type Event struct {
	OrderID    string `json:"order_id"`
	CustomerID string `json:"customer_id,omitempty"`
	Items      []Item `json:"items,omitempty"`
	Amount     int    `json:"amount,omitempty"`
	Reference  string `json:"reference,omitempty"`
}

// Work is an event that waits for a decision: from a request, which waits on reply, or from NATS.
type Work struct {
	id      string
	subject string
	event   Event
	reply   chan error
	message *nats.Msg
}

// Outgoing is an event that follows from a decision, and the row of the outbox.
type Outgoing struct {
	id, subject string
	body        []byte
}

// Store is what a service keeps. Its methods are called by one goroutine, between begin and commit.
type Store interface {
	begin() error
	commit() error
	isNew(id string) (bool, error)
	put(table, id, status string, body any) error
	setStatus(table, id, status string, from ...string) error // if the status is one of from
	reserve(item Item) (int, error)                           // the price, or -1 if there is not enough
	add(events []Outgoing) error
	markSent(ids []string) error
	unsent() ([]Outgoing, error)
	status(id string) (string, error) // from any goroutine
	count(status string) (int, error) // from any goroutine
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func outgoing(subject string, event Event) Outgoing {
	body, err := json.Marshal(event)
	check(err)
	return Outgoing{subject + "." + event.OrderID, subject, body}
}

// decide changes the state of module and returns what follows.
func decide(store Store, module string, work *Work) ([]Outgoing, error) {
	event := work.event
	switch module + " " + work.subject {
	case "orders orders.submitted":
		err := store.put("orders", event.OrderID, "processing", event)
		return []Outgoing{outgoing("orders.created", event)}, err
	case "inventory orders.created":
		amount := 0
		for _, item := range event.Items {
			price, err := store.reserve(item)
			if err != nil {
				return nil, err
			}
			if price < 0 {
				return []Outgoing{outgoing("inventory.rejected", Event{OrderID: event.OrderID})}, nil
			}
			amount += price * item.Quantity
		}
		err := store.put("reservations", event.OrderID, "held", event)
		return []Outgoing{outgoing("inventory.reserved", Event{OrderID: event.OrderID, Amount: amount})}, err
	case "orders inventory.reserved":
		return nil, store.setStatus("orders", event.OrderID, "reserved", "processing")
	case "payments inventory.reserved":
		event.Reference = "sim_" + event.OrderID // a simulated provider, which answers at once
		err := store.put("payments", event.OrderID, "captured", event)
		return []Outgoing{outgoing("payments.captured", Event{OrderID: event.OrderID, Reference: event.Reference})}, err
	case "orders inventory.rejected":
		return nil, store.setStatus("orders", event.OrderID, "cancelled", "processing")
	case "orders payments.captured": // the reservation may arrive after it
		err := store.setStatus("orders", event.OrderID, "confirmed", "processing", "reserved")
		return []Outgoing{outgoing("orders.confirmed", Event{OrderID: event.OrderID})}, err
	case "inventory orders.confirmed":
		return nil, store.setStatus("reservations", event.OrderID, "shipped", "held")
	}
	return nil, fmt.Errorf("no decision about %s", work.subject)
}

type Service struct {
	module string
	store  Store
	js     nats.JetStreamContext
	works  chan *Work
	lock   sync.Mutex
	sent   []string
}

// run takes what waits, decides about it in one transaction, and then answers, publishes and acknowledges.
func (s *Service) run() {
	for first := range s.works {
		batch := []*Work{first}
	fill:
		for len(batch) < batchMax {
			select {
			case work := <-s.works:
				batch = append(batch, work)
			default:
				break fill
			}
		}
		check(s.store.begin())
		var events []Outgoing
		for _, work := range batch {
			isNew, err := s.store.isNew(work.id)
			check(err)
			if isNew {
				following, err := decide(s.store, s.module, work)
				check(err)
				events = append(events, following...)
			}
		}
		check(s.store.add(events))
		s.lock.Lock()
		sent := s.sent
		s.sent = nil
		s.lock.Unlock()
		check(s.store.markSent(sent))
		check(s.store.commit())
		s.publish(events)
		for _, work := range batch {
			if work.reply != nil {
				work.reply <- nil
			} else {
				check(work.message.Ack())
			}
		}
	}
}

// publish sends events, and notes those that the stream has stored.
func (s *Service) publish(events []Outgoing) {
	futures := make([]nats.PubAckFuture, len(events))
	for i, event := range events {
		message := &nats.Msg{Subject: event.subject, Data: event.body, Header: nats.Header{"Nats-Msg-Id": {event.id}}}
		future, err := s.js.PublishMsgAsync(message)
		check(err)
		futures[i] = future
	}
	go func() {
		ids := make([]string, 0, len(events))
		for i, future := range futures {
			select {
			case <-future.Ok():
				ids = append(ids, events[i].id)
			case err := <-future.Err():
				fmt.Println("not published, stays in the outbox:", err)
			}
		}
		s.lock.Lock()
		s.sent = append(s.sent, ids...)
		s.lock.Unlock()
	}()
}

func (s *Service) subscribe(module, subject string) {
	stream := strings.ToUpper(strings.SplitN(subject, ".", 2)[0])
	deliver := func(message *nats.Msg) {
		work := &Work{id: message.Header.Get("Nats-Msg-Id"), subject: message.Subject, message: message}
		check(json.Unmarshal(message.Data, &work.event))
		s.works <- work
	}
	durable := module + "-" + strings.ReplaceAll(subject, ".", "-")
	for { // the other service may not have created its stream yet
		_, err := s.js.Subscribe(subject, deliver, nats.Durable(durable), nats.ManualAck(), nats.DeliverAll(),
			nats.BindStream(stream), nats.MaxAckPending(4096))
		if err == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *Service) place(writer http.ResponseWriter, request *http.Request) {
	var event Event
	if err := json.NewDecoder(request.Body).Decode(&event); err != nil || event.CustomerID == "" || len(event.Items) == 0 {
		http.Error(writer, `{"error":"invalid body"}`, http.StatusBadRequest)
		return
	}
	var random [16]byte
	_, err := rand.Read(random[:])
	check(err)
	event.OrderID = fmt.Sprintf("%x", random)
	work := &Work{id: event.OrderID, subject: "orders.submitted", event: event, reply: make(chan error, 1)}
	s.works <- work
	<-work.reply
	writer.Header().Set("Content-Type", "application/json")
	writer.WriteHeader(http.StatusAccepted)
	fmt.Fprintf(writer, `{"order_id":"%s","status":"processing"}`, event.OrderID)
}

func (s *Service) read(writer http.ResponseWriter, request *http.Request) {
	id := strings.TrimPrefix(request.URL.Path, "/v1/orders/")
	status, err := s.store.status(id)
	if err != nil {
		http.NotFound(writer, request)
		return
	}
	fmt.Fprintf(writer, `{"order_id":"%s","status":"%s"}`, id, status)
}

func main() {
	module, url := os.Args[1], os.Args[2]
	var store Store = newMemory()
	if len(os.Args) > 3 {
		store = openSQLite(os.Args[3])
	}
	connection, err := nats.Connect(url, nats.MaxReconnects(-1))
	check(err)
	js, err := connection.JetStream(nats.PublishAsyncMaxPending(8192))
	check(err)
	_, err = js.AddStream(&nats.StreamConfig{Name: strings.ToUpper(module), Subjects: []string{module + ".>"}})
	check(err)
	service := &Service{module: module, store: store, js: js, works: make(chan *Work, 4096)}
	left, err := store.unsent()
	check(err)
	service.publish(left)
	go service.run()
	consumed := map[string][]string{
		"orders":    {"inventory.reserved", "inventory.rejected", "payments.captured"},
		"inventory": {"orders.created", "orders.confirmed"},
		"payments":  {"inventory.reserved"},
	}
	for _, subject := range consumed[module] {
		service.subscribe(module, subject)
	}
	http.HandleFunc("/v1/orders", service.place)
	http.HandleFunc("/v1/orders/", service.read)
	http.HandleFunc("/completed", func(writer http.ResponseWriter, request *http.Request) {
		count, err := store.count("confirmed")
		check(err)
		fmt.Fprint(writer, count)
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Printf("ready at http://%s\n", listener.Addr())
	check(http.Serve(listener, nil))
}

// Memory keeps nothing beyond the process.
type Memory struct {
	lock     sync.Mutex
	seen     map[string]bool
	statuses map[string]string
	counts   map[string]int
	onHand   map[string]int
}

func newMemory() *Memory {
	memory := &Memory{
		seen: map[string]bool{}, statuses: map[string]string{}, counts: map[string]int{}, onHand: map[string]int{},
	}
	for number := 0; number < 10; number++ {
		memory.onHand[fmt.Sprintf("SKU-%d", number)] = 1_000_000_000
	}
	return memory
}

func (m *Memory) begin() error                { m.lock.Lock(); return nil }
func (m *Memory) commit() error               { m.lock.Unlock(); return nil }
func (m *Memory) add(events []Outgoing) error { return nil }
func (m *Memory) markSent(ids []string) error { return nil }
func (m *Memory) unsent() ([]Outgoing, error) { return nil, nil }
func (m *Memory) isNew(id string) (bool, error) {
	isNew := !m.seen[id]
	m.seen[id] = true
	return isNew, nil
}

func (m *Memory) put(table, id, status string, body any) error {
	m.statuses[id] = status
	m.counts[status]++
	return nil
}

func (m *Memory) setStatus(table, id, status string, from ...string) error {
	for _, before := range from {
		if m.statuses[id] == before {
			m.counts[before]--
			m.counts[status]++
			m.statuses[id] = status
			break
		}
	}
	return nil
}

func (m *Memory) reserve(item Item) (int, error) {
	if m.onHand[item.ProductID] < item.Quantity {
		return -1, nil
	}
	m.onHand[item.ProductID] -= item.Quantity
	return 100, nil
}

func (m *Memory) status(id string) (string, error) {
	m.lock.Lock()
	defer m.lock.Unlock()
	status, found := m.statuses[id]
	if !found {
		return "", sql.ErrNoRows
	}
	return status, nil
}

func (m *Memory) count(status string) (int, error) {
	m.lock.Lock()
	defer m.lock.Unlock()
	return m.counts[status], nil
}

// SQLite keeps everything in one file; each commit waits for the disk.
type SQLite struct {
	writer, reader *sql.DB
	tx             *sql.Tx
	prepared       map[string]*sql.Stmt
}

const (
	insertInbox  = "INSERT OR IGNORE INTO inbox VALUES (?)"
	insertOutbox = "INSERT INTO outbox VALUES (?, ?, ?, 0)"
	updateOutbox = "UPDATE outbox SET sent = 1 WHERE id = ?"
	updateStatus = "UPDATE %s SET status = ? WHERE id = ? AND status IN (?, ?)"
	updateStock  = "UPDATE products SET on_hand = on_hand - ? WHERE id = ? AND on_hand >= ? RETURNING price"
	insertRow    = "INSERT INTO %s VALUES (?, ?, ?)"
)

const schema = `
CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, status TEXT NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS reservations (id TEXT PRIMARY KEY, status TEXT NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS payments (id TEXT PRIMARY KEY, status TEXT NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS products (id TEXT PRIMARY KEY, on_hand INTEGER NOT NULL, price INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS inbox (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outbox (id TEXT PRIMARY KEY, subject TEXT NOT NULL, body BLOB NOT NULL, sent INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS outbox_unsent ON outbox (id) WHERE sent = 0;`

func openSQLite(path string) *SQLite {
	options := "?_journal_mode=WAL&_synchronous=FULL&_txlock=immediate&_busy_timeout=5000"
	writer, err := sql.Open("sqlite3", "file:"+path+options)
	check(err)
	writer.SetMaxOpenConns(1)
	_, err = writer.Exec(schema)
	check(err)
	for number := 0; number < 10; number++ {
		_, err = writer.Exec("INSERT OR IGNORE INTO products VALUES (?, 1000000000, 100)", fmt.Sprintf("SKU-%d", number))
		check(err)
	}
	reader, err := sql.Open("sqlite3", "file:"+path+options)
	check(err)
	store := &SQLite{writer: writer, reader: reader, prepared: map[string]*sql.Stmt{}}
	texts := []string{insertInbox, insertOutbox, updateOutbox, updateStock}
	for _, table := range []string{"orders", "reservations", "payments"} {
		texts = append(texts, fmt.Sprintf(insertRow, table), fmt.Sprintf(updateStatus, table))
	}
	for _, text := range texts {
		store.prepared[text], err = writer.Prepare(text)
		check(err)
	}
	return store
}

// statement returns the prepared statement of a text within the current transaction.
func (s *SQLite) statement(text string) *sql.Stmt {
	return s.tx.Stmt(s.prepared[text])
}

func (s *SQLite) begin() (err error) {
	s.tx, err = s.writer.BeginTx(context.Background(), nil)
	return err
}

func (s *SQLite) commit() error { return s.tx.Commit() }

func (s *SQLite) isNew(id string) (bool, error) {
	result, err := s.statement(insertInbox).Exec(id)
	if err != nil {
		return false, err
	}
	count, err := result.RowsAffected()
	return count == 1, err
}

func (s *SQLite) put(table, id, status string, body any) error {
	text, err := json.Marshal(body)
	check(err)
	_, err = s.statement(fmt.Sprintf(insertRow, table)).Exec(id, status, text)
	return err
}

func (s *SQLite) setStatus(table, id, status string, from ...string) error {
	other := append(from, from[0]) // the statement has two
	_, err := s.statement(fmt.Sprintf(updateStatus, table)).Exec(status, id, other[0], other[1])
	return err
}

func (s *SQLite) reserve(item Item) (int, error) {
	price := -1
	err := s.statement(updateStock).QueryRow(item.Quantity, item.ProductID, item.Quantity).Scan(&price)
	if err == sql.ErrNoRows {
		return -1, nil
	}
	return price, err
}

func (s *SQLite) add(events []Outgoing) error {
	for _, event := range events {
		if _, err := s.statement(insertOutbox).Exec(event.id, event.subject, event.body); err != nil {
			return err
		}
	}
	return nil
}

func (s *SQLite) markSent(ids []string) error {
	for _, id := range ids {
		if _, err := s.statement(updateOutbox).Exec(id); err != nil {
			return err
		}
	}
	return nil
}

func (s *SQLite) unsent() ([]Outgoing, error) {
	rows, err := s.reader.Query("SELECT id, subject, body FROM outbox WHERE sent = 0")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var found []Outgoing
	for rows.Next() {
		var event Outgoing
		if err := rows.Scan(&event.id, &event.subject, &event.body); err != nil {
			return nil, err
		}
		found = append(found, event)
	}
	return found, rows.Err()
}

func (s *SQLite) status(id string) (status string, err error) {
	err = s.reader.QueryRow("SELECT status FROM orders WHERE id = ?", id).Scan(&status)
	return status, err
}

func (s *SQLite) count(status string) (count int, err error) {
	err = s.reader.QueryRow("SELECT count(*) FROM orders WHERE status = ?", status).Scan(&count)
	return count, err
}
